"""Prior preservation: pictures of the class by the model as it came, drawn once, and what they change."""

import errno
import logging

import pytest
import torch
from rounding import equal_but_for_rounding
from safetensors.torch import save_file
from stub_model import StubModel, pictures

from contextual_inversion.core.maths.schedule import add_noise
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.training.regularizers.prior import PriorPreservation
from contextual_inversion.core.training.run.draws import generator_for
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train


def prior(folder=None, **keywords):
    return PriorPreservation(folder, **{"pictures": 5, "batch": 2, "steps": 2, "resolution": 64, **keywords})


def test_class_pictures_are_drawn_once_and_an_interrupted_drawing_goes_on(tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(done, wanted):
        assert wanted == 5
        if done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        prior(tmp_path, progress=interrupt).prepare(StubModel(), "dog", 1)
    seen, model = [], StubModel()
    resumed = prior(tmp_path, progress=lambda done, wanted: seen.append(done))
    resumed.prepare(model, "dog", 1)
    assert seen == [4]
    whole, again = prior(), prior(tmp_path, progress=lambda *_: pytest.fail("drawn twice"))
    whole.prepare(StubModel(), "dog", 1)
    again.prepare(StubModel(), "dog", 1)
    assert torch.equal(resumed.latents, whole.latents)
    assert torch.equal(again.latents, whole.latents)
    assert len(list(tmp_path.iterdir())) == 1
    prior(tmp_path).prepare(StubModel(), "cat", 1)
    assert len(list(tmp_path.iterdir())) == 2
    prior(tmp_path, applied="a LoRA").prepare(StubModel(), "cat", 1)
    assert len(list(tmp_path.iterdir())) == 3, "a model that a LoRA changes draws other pictures"


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "one bit": one_bit,
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "nothing": lambda path: path.write_bytes(b""),
    "other tensors": lambda path: save_file({"x": torch.zeros(1)}, path),
    "other shapes": lambda path: save_file({"latents": torch.zeros(5, 4, 1, 1)}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_class_pictures_that_the_disk_has_damaged_are_drawn_again(tmp_path, caplog, damage):
    whole = prior(tmp_path)
    whole.prepare(StubModel(), "dog", 1)
    (file,) = tmp_path.iterdir()
    DAMAGES[damage](file)
    again = prior(tmp_path)
    with caplog.at_level(logging.WARNING):
        again.prepare(StubModel(), "dog", 1)
    assert torch.equal(again.latents, whole.latents)
    assert file.name in caplog.text
    prior(tmp_path, progress=lambda *_: pytest.fail("drawn again")).prepare(StubModel(), "dog", 1)


def test_a_full_disk_does_not_end_the_drawing(tmp_path, caplog, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    one, whole = prior(tmp_path), prior()
    with caplog.at_level(logging.WARNING):
        one.prepare(StubModel(), "dog", 1)
    whole.prepare(StubModel(), "dog", 1)
    assert torch.equal(one.latents, whole.latents)
    assert "No space left" in caplog.text


def test_they_are_what_the_model_draws_each_from_its_own_seed():
    """However many are drawn at once: the file does not say."""
    model, size = StubModel(), ImageSize(64, 64)
    class_pictures = prior(seed=3, steps=3, guidance=2.0, prompt="the {}")
    class_pictures.prepare(model, "dog", 1)
    positive, negative = (model.conditioning(encode_prompts(model, [text]), size) for text in ("the dog", ""))
    expected = sample(model, positive, negative, shape=(5, 4, 8, 8), steps=3, guidance=2.0, seed=[3, 4, 5, 6, 7])
    equal_but_for_rounding(class_pictures.latents, expected)
    assert not class_pictures.latents.requires_grad


def test_a_step_looks_at_any_of_them_at_any_timestep():
    """The diffusion loss of the drawn pictures under the prompt with the class word, in float64 by hand."""
    model, settings = StubModel(), TrainSettings(class_word="dog", method="dreambooth-lora", batch=2, seed=4)
    with train(model, pictures(), settings, regularizers=[prior(batch=4, weight=0.3)]) as running:
        next(running)
        regularizer = running.regularizers[0]
        (terms,) = running.prepared.objective.terms(6, torch.zeros(2, 4, 8, 8), torch.zeros(2))
        draws = generator_for(4, "regularizer/prior#1", 6)
        rows, t = (torch.randint(count, (4,), generator=draws) for count in (5, 1000))
        noise = torch.randn(4, 4, 8, 8, generator=draws)
        given = model.conditioning(encode_prompts(model, ["a picture of a dog"]), ImageSize(64, 64)).expand(4)
        with torch.no_grad():
            z_t = add_noise(regularizer.latents[rows], noise, model.schedule.alpha_bar[t])
            output = model.predict(z_t, t, given)
    assert len(set(rows.tolist())) > 1
    term = terms.losses["prior/diffusion"]
    assert term.weight == 0.3
    torch.testing.assert_close(term.value.detach().double(), (output - noise).double().square().mean())


def test_its_noise_is_measured_as_that_of_the_training_pictures(monkeypatch):
    """alpha-bar in float64 until the sum is rounded: roots of a narrowed one would be another z_t, in its last bits."""
    model, seen = StubModel(), []
    regularizer, settings = prior(batch=4), TrainSettings(class_word="dog", method="dreambooth-lora", batch=2, seed=4)
    with train(model, pictures(), settings, regularizers=[regularizer]) as running:
        next(running)
        predict = model.predict
        monkeypatch.setattr(model, "predict", lambda latents, *rest: seen.append(latents) or predict(latents, *rest))
        running.prepared.objective.terms(6, torch.zeros(2, 4, 8, 8), torch.zeros(2))
    draws = generator_for(4, "regularizer/prior#1", 6)
    rows, t = (torch.randint(count, (4,), generator=draws) for count in (5, 1000))
    noise, clean, exact = (
        torch.randn(4, 4, 8, 8, generator=draws),
        regularizer.latents[rows],
        model.schedule.alpha_bar[t],
    )
    assert torch.equal(seen[0], add_noise(clean, noise, exact))
    # Which of the thousand differ is the processor's affair: that these four do is not to be had everywhere.
    every, ones = model.schedule.alpha_bar, torch.ones(1000, 1, 1, 1)
    assert not torch.equal(add_noise(ones, -ones, every), add_noise(ones, -ones, every.float()))


OTHERWISE = {"prompt": "the {}", "resolution": 128, "steps": 3, "guidance": 1.0, "seed": 1}
"""What decides the pictures, beside the model and the class word."""


def test_whatever_decides_the_pictures_is_in_their_name(tmp_path):
    def with_other(part):
        model = StubModel()
        part(model).data.add_(0.5)
        return model

    models = [StubModel(), with_other(lambda m: m.conv_in.weight), with_other(lambda m: m.encoders[0].tokens.weight)]
    for model in models:
        prior(tmp_path, pictures=1).prepare(model, "dog", 1)
    for name, value in OTHERWISE.items():
        prior(tmp_path, pictures=1, **{name: value}).prepare(StubModel(), "dog", 1)
    assert len(list(tmp_path.iterdir())) == len(models) + len(OTHERWISE)


def test_fewer_than_were_drawn_are_the_first_of_them(tmp_path):
    many, few = prior(tmp_path), prior(tmp_path, pictures=3)
    for one in (many, few):
        one.prepare(StubModel(), "dog", 1)
    assert torch.equal(few.latents, many.latents[:3])


def test_weight_zero_is_the_training_without_bit_by_bit(run):
    keywords = {"method": "dreambooth-lora", "identifier": "sks"}
    plain = run(StubModel(), **keywords)
    with_zero = run(StubModel(), regularizers=[prior(weight=0.0)], **keywords)
    assert all(torch.equal(value, with_zero.concept.lora[key]) for key, value in plain.concept.lora.items())


@pytest.mark.parametrize("method", ["custom-diffusion", "dreambooth-lora", "dreambooth"])
def test_it_holds_what_the_class_word_draws(run, method):
    keywords = {"method": method, "identifier": "sks", "weight_rate": 5e-3, "steps": 40}
    plain = run(StubModel(), regularizers=[prior(weight=1e-12)], **keywords)
    held = run(StubModel(), regularizers=[prior(weight=3.0)], **keywords)
    assert held.losses["prior/diffusion"][-10:].mean() < plain.losses["prior/diffusion"][-10:].mean()


def test_its_gradient_reaches_the_text_encoder():
    settings = TrainSettings(class_word="dog", method="dreambooth", identifier="sks", batch=2, diffusion_weight=0.0)
    with train(StubModel(), pictures(), settings, regularizers=[prior()]) as running:
        next(running)
        running.prepared.objective.gather(0, running.learner.backward)
        text = [leaf.grad for name, leaf in running.learner.weights.items() if name.startswith("clip_l")]
    assert text
    assert all(gradient.abs().max() > 0 for gradient in text)


def test_without_a_class_word_it_is_refused():
    with pytest.raises(ValueError, match="give the class word"):
        prior().prepare(StubModel(), " ", 1)
    with pytest.raises(ValueError, match=r"one class word, .* dog, wooden toy: train them one by one"):
        prior().prepare(StubModel(), ("dog", "wooden toy"), (range(1), range(1, 2)))
    with pytest.raises(ValueError, match="class word"):
        TrainSettings(class_word=" ")
    with pytest.raises(ValueError, match=r"one \{\}"):
        prior(prompt="a dog")
