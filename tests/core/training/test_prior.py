"""Prior preservation: pictures of the class by the model as it came, drawn once, and what they change."""

import pytest
import torch
from stub_model import StubModel, pictures

from contextual_inversion.core.training.prior import PriorPreservation
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
        running.objective.gather(0, running.learner.backward)
        text = [leaf.grad for name, leaf in running.learner.weights.items() if name.startswith("clip_l")]
    assert text
    assert all(gradient.abs().max() > 0 for gradient in text)


def test_without_a_class_word_it_is_refused():
    with pytest.raises(ValueError, match="give the class word"):
        prior().prepare(StubModel(), " ", 1)
    with pytest.raises(ValueError, match="class word"):
        TrainSettings(class_word=" ")
    with pytest.raises(ValueError, match=r"one \{\}"):
        prior(prompt="a dog")
