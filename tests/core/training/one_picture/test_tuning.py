"""Predicting a word from one picture and tuning it: exact, repeatable, and careful about what it is given."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from rounding import equal_but_for_rounding
from tuning_parts import images, model, pictures, settings, source

from contextual_inversion.core.maths.schedule import add_noise
from contextual_inversion.core.models.dual_path import DualPath, predict_dual
from contextual_inversion.core.models.frozen import autograd
from contextual_inversion.core.models.lora import from_lora, to_lora
from contextual_inversion.core.models.low_rank import LowRankDelta, WeightDelta, apply_deltas, text_layers
from contextual_inversion.core.models.protocol import ImageSize, NoiseSchedule
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.training.one_picture.applied import deltas_of, predicted_conditioning
from contextual_inversion.core.training.one_picture.observer import Observer
from contextual_inversion.core.training.one_picture.predict import latents_and_features, predict_concept
from contextual_inversion.core.training.one_picture.pretraining import pretrain_encoder
from contextual_inversion.core.training.one_picture.regularization import EmbeddingRegularization
from contextual_inversion.core.training.one_picture.square import square_picture
from contextual_inversion.core.training.one_picture.tuning import TuneSettings, _Tuning, tune
from contextual_inversion.core.training.run.draws import generator_for
from contextual_inversion.core.training.run.events import Finished, Started, Step

SIZE = ImageSize(64, 64)


@lru_cache
def encoder(kind="sd1"):
    *_, last = pretrain_encoder(model(kind), images(), source(), settings(steps=3, learning_rate=1e-2, ema=None))
    return last.encoder


def picture():
    return pictures(1)[0]


def predicted(kind="sd1", given=None):
    return predict_concept(
        model(kind), images(), encoder(kind), picture() if given is None else given, name="x", class_word="dog"
    )


def tuned(kind="sd1", predicted=None, **keywords):
    given = {"steps": 2, "batch": 2, "alpha": None, "lora_learning_rate": 1e-2, "vector_learning_rate": 1e-2}
    return list(
        tune(
            model(kind), images(), encoder(kind), picture(), TuneSettings(**{**given, **keywords}), name="x",
            predicted=predicted,
        )
    )  # fmt: skip


def noisy():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([100, 900])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_concept_does_what_the_networks_prediction_does(kind):
    subject, network, concept = model(kind), encoder(kind), predicted(kind)
    with subject.session(), torch.no_grad():
        latents, features = latents_and_features(subject, images(), picture(), 64)
        found = network(Observer(subject, SIZE).look(network, latents, features))
        wanted = predicted_conditioning(subject, found.vectors, ["a photo of a {}"], SIZE).expand(2)
        with apply_deltas(subject, deltas_of(found.factors, copies=2)):
            ours = subject.predict(*noisy(), wanted)
        conditioning = subject.conditioning(encode_prompts(subject, ["a photo of a {}"], vectors=concept.vectors), SIZE)
        plain = subject.predict(*noisy(), conditioning.expand(2))
        with apply_deltas(subject, from_lora(subject, concept.lora)):
            theirs = subject.predict(*noisy(), conditioning.expand(2))
    equal_but_for_rounding(theirs, ours)
    assert (theirs - plain).abs().max() > 1e-3
    assert set(concept.vectors) == set(subject.text_encoders)
    assert concept.hard_token.isalpha()
    assert concept.class_word == "dog"
    assert concept.provenance["predicted"]["peak_bytes"] > 0
    assert concept.provenance["predicted"]["seconds"] > 0


def test_a_prediction_repeats_itself_and_depends_on_the_picture():
    one, same, other = predicted(), predicted(), predicted(given=pictures(2)[1])
    assert torch.equal(one.vectors["clip_l"], same.vectors["clip_l"])
    assert all(torch.equal(value, same.lora[key]) for key, value in one.lora.items())
    assert not torch.equal(one.vectors["clip_l"], other.vectors["clip_l"])


def test_it_looks_at_each_of_its_timesteps_with_fixed_noise_of_its_own(monkeypatch):
    """METHODS.md 3.2. Timesteps are of a thousand, however many the model's schedule has."""
    subject, network, seen, maps = model(), copy(encoder()), [], Observer.maps
    network.seed = 7
    halved = NoiseSchedule(subject.schedule.alpha_bar[::2], subject.schedule.prediction_type)
    monkeypatch.setattr(subject, "schedule", halved)
    monkeypatch.setattr(Observer, "maps", lambda self, *given: seen.append(given) or maps(self, *given))
    with subject.session(), torch.no_grad():
        latents, features = latents_and_features(subject, images(), picture(), 64)
        Observer(subject, SIZE).look(network, latents, features)
    assert [given[2].tolist() for given in seen] == [[150], [350]]
    for number, (clean, noise, _) in enumerate(seen):
        own = torch.randn(latents.shape[1:], generator=generator_for(7, "prediction", number))
        assert torch.equal(clean, latents)
        assert torch.equal(noise[0], own)


def test_tuning_lowers_the_loss_of_its_own_picture():
    *_, last = tuned(steps=12, batch=4)
    diffusion = last.losses["diffusion"]
    assert len(diffusion) == 12

    def error(concept):
        subject = model()
        with subject.session(), torch.no_grad():
            latents, _ = latents_and_features(subject, images(), picture(), 64)
            z, t = noisy()
            alpha = subject.schedule.alpha_bar[t].float().view(-1, 1, 1, 1)
            context = subject.conditioning(encode_prompts(subject, ["a photo of a {}"], vectors=concept.vectors), SIZE)
            with apply_deltas(subject, from_lora(subject, concept.lora)):
                out = subject.predict(alpha.sqrt() * latents + (1 - alpha).sqrt() * z, t, context.expand(2))
        return (out - z).square().mean()

    assert error(last.concept) < error(predicted())


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_tuning_is_a_stream_and_leaves_model_and_encoder_alone(kind, alpha):
    subject, network = model(kind), encoder(kind)
    before = {name: value.clone() for name, value in subject.unet.state_dict().items()}
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    started, *steps, last = tuned(kind, alpha=alpha)
    assert isinstance(started, Started)
    assert isinstance(last, Finished)
    assert [step.step for step in steps if isinstance(step, Step)] == [1, 2]
    assert all(torch.equal(value, before[name]) for name, value in subject.unet.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in subject.unet.modules())
    start = predicted(kind)
    assert all(not torch.equal(value, start.vectors[name]) for name, value in last.concept.vectors.items())
    moved = [key for key, value in last.concept.lora.items() if not torch.equal(value, start.lora[key])]
    assert len(moved) == sum(not key.endswith(".alpha") for key in start.lora)
    assert last.concept.provenance["tuned"]["peak_bytes"] > 0
    assert last.concept.provenance["settings"]["alpha"] == alpha


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_a_step_follows_the_gradient_of_the_sum_at_noise_of_its_own(alpha):
    """METHODS.md D5 on copies of the one picture, by hand."""
    subject, network, start = model(), encoder(), predicted()
    halved = {name: replace(delta, scale=0.5) for name, delta in from_lora(subject, start.lora).items()}
    start = replace(start, lora=to_lora(subject, halved), hard_token="photo")
    options = TuneSettings(
        batch=2, alpha=alpha, contrastive=0.7, l2=0.03, temperature=0.3, positives=2, template="the {}", seed=5,
        lora_learning_rate=1e-2, vector_learning_rate=3e-2,
    )  # fmt: skip
    with subject.session(), autograd():
        tuning = _Tuning(subject, network, picture(), options, start)
        assert {delta.scale for delta in tuning.deltas.values()} == {0.5}
        tuning._backward(3)
        found = [value.grad.clone() for value in tuning.tuned]
        draws = generator_for(5, "tuning", 3)
        t = torch.randint(subject.schedule.steps, (2,), generator=draws)
        noise = torch.randn(2, *tuning.latents.shape[1:], generator=draws)
        z_t = add_noise(tuning.latents.expand_as(noise), noise, subject.schedule.alpha_bar[t])
        soft, hard = (
            subject.conditioning(encode_prompts(subject, ["the {}"], **filling), SIZE).expand(2)
            for filling in ({"vectors": tuning.vectors}, {"words": "photo"})
        )
        if alpha is None:
            with apply_deltas(subject, tuning.deltas):
                output = subject.predict(z_t, t, soft)
        else:
            output = predict_dual(subject, z_t, t, hard, DualPath(soft, tuning.deltas, alpha))
        assert network.negatives
        regularization = EmbeddingRegularization(subject, positives=2, temperature=0.3, negatives=network.negatives)
        contrastive, l2 = regularization(tuning.vectors)
        loss = (output - noise).square().mean() + 0.7 * contrastive + 0.03 * l2
        expected = torch.autograd.grad(loss, tuning.tuned)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    groups = tuning.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-2, 0.0), (3e-2, 0.0)]
    assert groups[1]["params"] == list(tuning.vectors.values())


@pytest.mark.parametrize(("what", "vectors", "lora"), [("lora", False, True), ("vectors", True, False)])
def test_only_what_is_tuned_moves(what, vectors, lora):
    start = predicted()
    *_, last = tuned(tuned=what)
    assert torch.equal(last.concept.vectors["clip_l"], start.vectors["clip_l"]) is not vectors
    assert all(torch.equal(value, start.lora[key]) for key, value in last.concept.lora.items()) is not lora


def test_tuning_goes_on_from_a_prediction_that_is_given():
    *_, again = tuned()
    *_, given = tuned(predicted=predicted())
    assert torch.equal(given.concept.vectors["clip_l"], again.concept.vectors["clip_l"])


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_whole_weights_start_where_their_factors_do_and_go_their_own_way(alpha):
    subject, start = model(), predicted()
    dense = {layer: WeightDelta(delta.weight()) for layer, delta in from_lora(subject, start.lora).items()}
    *_, low = tuned(predicted=start, alpha=alpha)
    *_, full = tuned(predicted=replace(start, lora=to_lora(subject, dense)), alpha=alpha)
    assert float(full.losses["diffusion"][0]) == pytest.approx(float(low.losses["diffusion"][0]), rel=1e-4)
    assert {key.rsplit(".", 1)[1] for key in full.concept.lora} == {"diff"}
    moved = from_lora(subject, full.concept.lora)
    ranks = [int(torch.linalg.matrix_rank(moved[layer].weight - dense[layer].weight)) for layer in dense]
    assert min(ranks) > 2 * low.concept.provenance["encoder"]["rank"]


def test_checkpointed_layers_are_asked_of_the_models_session(monkeypatch):
    subject, asked = model(), []
    session = subject.session
    monkeypatch.setattr(subject, "session", lambda **given: asked.append(given) or session(**given))
    options = TuneSettings(steps=1, batch=1, alpha=None, gradient_checkpointing=True)
    with tune(subject, images(), encoder(), picture(), options, predicted=predicted()) as run:
        next(run)
    assert asked[-1] == {"gradient_checkpointing": True}


def test_stopping_in_the_middle_leaves_the_model_free():
    settings = TuneSettings(steps=2, batch=1, alpha=None)
    with tune(model(), images(), encoder(), picture(), settings) as run:
        next(run)
        next(run)
    assert not any(part._forward_hooks for part in model().unet.modules())
    assert not torch.is_inference_mode_enabled()


def test_what_is_not_finite_is_no_concept(monkeypatch):
    """Settings refuse such a rate by name; whatever else is not finite ends a tuning all the same."""
    module = "contextual_inversion.core.training.one_picture.tuning"
    monkeypatch.setattr(f"{module}.require_finite_fields", lambda _: None)
    with pytest.raises(RuntimeError, match="smaller learning rates"):
        tuned(vector_learning_rate=float("inf"))


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        concept = predicted()
        *_, last = tuned()
    assert not concept.vectors["clip_l"].is_inference()
    assert torch.equal(concept.vectors["clip_l"], predicted().vectors["clip_l"])
    assert torch.isfinite(last.losses["diffusion"]).all()


# Bad input


def test_more_than_twelve_steps_have_to_be_meant():
    with pytest.raises(ValueError, match="12 steps at most, not 13"):
        TuneSettings(steps=13)
    assert TuneSettings(steps=13, more_steps=True).steps == 13


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"alpha": -0.1}, {"alpha": 1.1}, {"template": "a dog"}, {"tuned": "x"}, {"l2": -1.0}]
)
def test_settings_that_mean_nothing_are_errors(wrong):
    with pytest.raises(ValueError, match=r"at least|alpha|needs one|unknown|negative"):
        TuneSettings(**wrong)


def test_other_models_are_refused_by_name():
    with pytest.raises(ValueError, match=r"trained on .* but here is .*the image encoder differs"):
        predict_concept(model(), images(1), encoder(), picture())
    with pytest.raises(ValueError, match="the UNet and the text encoder differ"):
        next(tune(model("sd2"), images(), encoder(), picture()))


def test_it_is_called_what_is_asked_for_and_else_what_it_was():
    start = replace(predicted(), latents=torch.ones(1, 4, 8, 8), hard_token="dog", class_word="dog")
    options = TuneSettings(steps=1, batch=1, alpha=None)

    def concept(**keywords):
        run = tune(model(), images(), encoder(), picture(), options, predicted=start, **keywords)
        return list(run)[-1].concept

    kept = concept()
    assert (kept.name, kept.class_word) == ("x", kept.hard_token)
    assert torch.equal(kept.latents, start.latents)
    # A class word that was given is that, even where the prediction was nearest to it.
    named = concept(name="other", class_word=" dog ")
    assert (named.name, named.class_word) == ("other", "dog")


def test_nothing_of_a_concept_is_dropped_in_silence():
    start = predicted()
    layers = {name: value.repeat(16, 1, 1) for name, value in start.vectors.items()}
    with pytest.raises(ValueError, match="a vector for every layer"):
        tuned(predicted=replace(start, layer_vectors=layers))
    wide = {name: value.repeat(1, 2) for name, value in start.vectors.items()}
    with pytest.raises(ValueError, match="was made for clip_l"):
        tuned(predicted=replace(start, vectors=wide))


def test_a_lora_of_the_text_encoder_counts_and_is_tuned_too():
    start, subject = predicted(), model()
    (name,) = subject.text_encoders
    layer = f"{name}.text_model.encoder.layers.0.self_attn.q_proj"
    delta = LowRankDelta.initial(text_layers(subject)[layer], 2, generator=torch.Generator().manual_seed(0))
    both = to_lora(subject, {**from_lora(subject, start.lora), layer: replace(delta, b=delta.b.detach() + 0.5)})
    after = tuned(predicted=replace(start, lora=both), steps=1)[-1]
    assert after.losses["diffusion"] != tuned(predicted=start, steps=1)[-1].losses["diffusion"]
    moved = from_lora(subject, after.concept.lora)[layer]
    assert not torch.equal(moved.b, from_lora(subject, both)[layer].b)


def test_a_concept_without_a_lora_cannot_be_tuned():
    with pytest.raises(ValueError, match="no LoRA to tune"):
        tuned(predicted=replace(predicted(), lora=None))


def test_pictures_of_any_kind_and_size():
    square = torch.rand(64, 64, 3)
    assert torch.equal(square_picture(square, 64), square.permute(2, 0, 1))
    assert torch.equal(square_picture(square[None], 64), square_picture(square, 64))
    clear = torch.cat([square, torch.zeros(64, 64, 1)], -1)
    assert torch.equal(square_picture(clear, 64), torch.ones(3, 64, 64))
    solid = torch.cat([square, torch.ones(64, 64, 1)], -1)
    assert torch.equal(square_picture(solid, 64), square_picture(square, 64))
    grey = square[..., :1]
    assert torch.equal(square_picture(grey, 64), grey.permute(2, 0, 1).expand(3, -1, -1))
    wide = torch.zeros(4320, 7680, 3)
    wide[:, 1680:6000] = 0.5
    torch.testing.assert_close(square_picture(wide, 64), torch.full((3, 64, 64), 0.5))
    assert square_picture(torch.rand(16, 900, 4), 64).shape == (3, 64, 64)


@pytest.mark.parametrize("empty", [torch.full((64, 64, 3), 0.5), torch.zeros(64, 64, 4)])
def test_a_picture_of_nothing_in_particular_gives_a_word_all_the_same(empty):
    concept = predicted(given=empty)
    assert all(torch.isfinite(value).all() for value in (*concept.vectors.values(), *concept.lora.values()))
    assert concept.hard_token.isalpha()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(1, 1, 3), "1 x 1 pixels shows nothing"),
        (torch.rand(2, 64, 64, 3), "one picture, not at 2"),
        (torch.rand(64, 64, 5), "1, 3 or 4 channels"),
        (torch.rand(64, 64, 3) * 255, r"0 \.\. 1"),
        (torch.full((64, 64, 3), torch.nan), r"0 \.\. 1"),
    ],
)
def test_pictures_that_show_nothing_are_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        predicted(given=wrong)
