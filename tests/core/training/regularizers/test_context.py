"""CoRe behind the seam: zero at the class word, honest estimates, cheap passes (METHODS.md 1.11)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stub_model import StubModel, pictures

from contextual_inversion.core.maths import context as maths
from contextual_inversion.core.maths.schedule import add_noise
from contextual_inversion.core.models.protocol import TokenMeans
from contextual_inversion.core.prompts.tokens import tokenize_prompt
from contextual_inversion.core.training.regularizers.context import (
    NARROW,
    NARROW_BESIDE_WEIGHTS,
    NARROW_FLOW,
    PAPER,
    CoReRegularizer,
    recommended_weights,
)
from contextual_inversion.core.training.run.history import History
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train

PROMPTS = ("a {} in the snow", "a red {} at sea under stars", "drawing of a {}")


def first_step(model, regularizer, *, displaced=0.0, class_word="dog", **keywords):
    """Losses and the objective of a first step; the vectors moved by `displaced` from the class word before it."""
    settings = TrainSettings(**{"class_word": class_word, "batch": 6, "steps": 1, **keywords})
    with train(model, pictures(), settings, regularizers=[regularizer]) as run:
        next(run)
        with torch.no_grad():
            for value in run.learner.vectors.values():
                value += displaced * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        model.predictions.clear()
        losses, _ = run.prepared.objective.gather(0, run.learner.backward)
        return {name: float(value) for name, value in losses.items()}, run


@pytest.mark.parametrize("encoders", [1, 2])
@pytest.mark.parametrize("axis", ["paper", "official"])
@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("class_word", ["dog", "retriever"])
def test_zero_at_the_class_word_and_only_there(encoders, axis, mode, class_word):
    regularizer = CoReRegularizer(PROMPTS, axis=axis, attention_mode=mode, attention_batch=6)
    count = len(StubModel().text_encoders["clip_l"].tokenize(class_word))
    keywords = {"class_word": class_word, "vectors": count, "passes": "separate"}
    losses, _ = first_step(StubModel(encoders=encoders), regularizer, **keywords)
    assert losses["core/embedding"] == losses["core/attention"] == 0
    losses, _ = first_step(StubModel(encoders=encoders), regularizer, displaced=1.0, **keywords)
    assert losses["core/embedding"] > 1e-6
    assert losses["core/attention"] > 1e-12


@pytest.mark.parametrize("encoders", [1, 2])
@pytest.mark.parametrize(("axis", "mode"), [("paper", "official"), ("official", "paper")])
def test_values_are_those_of_the_equations_in_float64(encoders, axis, mode):
    model = StubModel(encoders=encoders)
    regularizer = CoReRegularizer(PROMPTS[:1], attention_batch=6, axis=axis, attention_mode=mode)
    losses, run = first_step(model, regularizer, displaced=1.0, vectors=2, class_word="dog and cat")
    encoder = model.text_encoders["clip_l"]
    ours = tokenize_prompt(encoder, PROMPTS[0], rows=2)
    theirs = tokenize_prompt(encoder, PROMPTS[0], words="dog and cat")
    assert len(ours.context) == len(theirs.context)
    concept = run.prepared.prompts.with_concept(PROMPTS[:1])
    reference = run.prepared.prompts.with_words(PROMPTS[:1], "dog and cat")
    along, distances = 1 if axis == "paper" else 0, []
    for name in model.text_encoders:
        c, r = (e[name].tokens[0].detach().double().numpy() for e in (concept, reference))
        a, b = c[list(ours.context)], r[list(theirs.context)]
        cosines = (a * b).sum(along) / np.linalg.norm(a, axis=along) / np.linalg.norm(b, axis=along)
        distances.append((1 - cosines).mean())
    assert losses["core/embedding"] == pytest.approx(np.mean(distances), rel=1e-4)
    draws = run.prepared.objective.instances.draw(0)
    z_t = noised(run, draws)
    means = []
    for encoding in (concept, reference):
        probe = TokenMeans()
        with torch.no_grad():
            model.predict(z_t, draws.timesteps, run.prepared.prompts.conditioning(encoding).expand(6), probe)
        means.append([layer.double().numpy() for layer in probe.layers])
    gaps = [x[:, list(ours.context)] - y[:, list(theirs.context)] for x, y in zip(*means, strict=True)]
    if mode == "paper":
        gaps = [np.mean(gaps, axis=0)]
    expected = np.mean([(gap**2).mean(1).sum() for gap in gaps])
    assert losses["core/attention"] == pytest.approx(expected, rel=1e-3)


def noised(run, draws):
    z_0 = run.prepared.bank.latents[draws.rows]
    return add_noise(z_0, draws.noise, run.prepared.objective.instances.noising.alpha_bar[draws.timesteps])


def test_a_part_of_the_batch_estimates_the_whole_without_bias():
    # Every latent of the batch on its own, scaled to the batch, averages to the official sum over the batch.
    model = StubModel()
    whole, run = first_step(model, CoReRegularizer(PROMPTS[:1], attention_batch=6), displaced=1.0)
    part = CoReRegularizer(PROMPTS[:1], attention_batch=1)
    part.prepare(model, "dog", 1)
    objective = run.prepared.objective
    z_t, t = noised(run, objective.instances.draw(0)), objective.instances.draw(0).timesteps
    values = []
    for index in range(6):
        objective.regularizers = [part]
        order = [index, *[other for other in range(6) if other != index]]
        (terms,) = objective.terms(0, z_t[order], t[order])
        probe = TokenMeans()
        model.predict(terms.attention.latents, terms.attention.timesteps, terms.attention.conditioning, probe)
        values.append(float(terms.finish(probe.layers)["core/attention"].value.detach()))
    assert np.mean(values) == pytest.approx(whole["core/attention"], rel=1e-3)
    assert np.std(values) > 0


def test_passes_are_as_few_and_as_small_as_promised():
    model = StubModel()
    first_step(model, CoReRegularizer(PROMPTS))
    # (latents, watched, with gradient): the reference under no gradient, then everything else in one pass.
    assert model.predictions == [(2, True, False), (8, True, True)]
    first_step(model, CoReRegularizer(PROMPTS), passes="separate")
    assert model.predictions == [(2, True, False), (6, False, True), (2, True, True)]
    first_step(model, CoReRegularizer(PROMPTS, attention_weight=0))
    assert model.predictions == [(6, False, True)]


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("passes", ["joint", "separate"])
def test_the_total_is_the_weighted_sum_of_the_terms(weight, passes):
    """METHODS.md C4, with a weight of the diffusion loss as well."""
    settings = TrainSettings(class_word="dog", vectors=2, batch=3, steps=1, diffusion_weight=weight, passes=passes)
    core = CoReRegularizer(PROMPTS[:1], embedding_weight=0.3, attention_weight=700.0)
    with train(StubModel(), pictures(), settings, regularizers=[core]) as run:
        next(run)
        losses, total = run.prepared.objective.gather(0, lambda _: None)
    parts = [weight * losses["diffusion"], 0.3 * losses["core/embedding"], 700 * losses["core/attention"]]
    assert min(parts) > 1e-3
    torch.testing.assert_close(total, sum(parts), rtol=1e-5, atol=0)


def test_reference_prompts_are_encoded_once():
    model = StubModel()
    encoder, calls = model.text_encoders["clip_l"], []
    original = encoder.encode
    object.__setattr__(encoder, "encode", lambda *a: calls.append(torch.is_grad_enabled()) or original(*a))
    with train(
        model, pictures(), TrainSettings(class_word="dog", steps=20, batch=2), regularizers=[CoReRegularizer(PROMPTS)]
    ) as run:
        list(run)
    assert calls.count(False) == len(PROMPTS)
    assert calls.count(True) == 2 * 20


def test_context_switches_choose_tokens():
    model = StubModel()
    encoder = model.text_encoders["clip_l"]
    full = tokenize_prompt(encoder, PROMPTS[0], rows=1)
    for bos, padding, count in ((True, False, full.eot), (False, False, full.eot - 1), (True, True, 19)):
        regularizer = CoReRegularizer(PROMPTS[:1], bos=bos, padding=padding)
        regularizer.prepare(model, "dog", 1)
        ours, theirs = regularizer._positions["clip_l", PROMPTS[0]]
        assert len(ours) == len(theirs) == count


def test_tokens_after_eot_have_no_gradient():
    model = StubModel()
    tokens = torch.randn(1, 20, 32, requires_grad=True)
    row = tokenize_prompt(model.text_encoders["clip_l"], PROMPTS[0], rows=1)
    maths.embedding_loss(tokens[0], torch.randn(20, 32), row.context, row.context).backward()
    assert torch.count_nonzero(tokens.grad[0, row.eot + 1 :]) == 0
    assert torch.count_nonzero(tokens.grad[0, row.eot]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["no place"]}, "one {}"),
        ({"prompts": ["{} and {}"]}, "one {}"),
        ({"prompts": PROMPTS, "embedding_weight": -1}, "negative"),
        ({"prompts": PROMPTS, "axis": "x"}, "axis"),
        ({"prompts": PROMPTS, "attention_batch": 0}, "attention_batch"),
    ],
)
def test_it_refuses_what_cannot_work(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoReRegularizer(**arguments)


def test_a_prompt_that_does_not_fit_the_encoder_is_named():
    long = "a {} " + "word " * 30
    with pytest.raises(ValueError, match="has room for"):
        CoReRegularizer([long]).prepare(StubModel(), "dog", 1)


def test_weights_follow_the_encoder():
    assert recommended_weights(StubModel()) == recommended_weights(StubModel(), "xti") == NARROW
    assert recommended_weights(StubModel(), "word-lora") == NARROW_BESIDE_WEIGHTS
    flow = StubModel()
    flow.schedule = replace(flow.schedule, prediction_type="flow")
    assert recommended_weights(flow) == recommended_weights(flow, "word-lora") == NARROW_FLOW
    model = StubModel()
    model.text_encoders["clip_l"].width = 768
    assert recommended_weights(model) == PAPER
    assert (PAPER.embedding, PAPER.attention) == (1.5e-4, 0.05)


def test_a_single_latent_is_looked_at_in_a_third_of_the_steps_with_three_times_the_weight():
    """The expectation stays: what a step counts, over what it costs, is one on the mean."""
    model = StubModel()
    single = CoReRegularizer(PROMPTS[:1], embedding_weight=0, attention_weight=0.5)
    _, run = first_step(model, single, batch=1)
    objective = run.prepared.objective
    draw = objective.instances.draw(0)
    z_t = noised(run, draw)
    counted = []
    for step in range(300):
        (terms,) = objective.terms(step, z_t, draw.timesteps)
        if terms.attention is None:
            counted.append(0.0)
            continue
        probe = TokenMeans()
        model.predict(terms.attention.latents, terms.attention.timesteps, terms.attention.conditioning, probe)
        counted.append(terms.finish(probe.layers)["core/attention"].weight)
    assert set(counted) == {0.0, 1.5}
    assert np.mean(counted) == pytest.approx(0.5, abs=0.08)
    always = CoReRegularizer(PROMPTS[:1], attention_batch=1)
    always.prepare(model, "dog", 1)
    objective.regularizers = [always]
    assert all(objective.terms(step, z_t, draw.timesteps)[0].attention is not None for step in range(20))


def test_a_step_that_fails_where_the_attention_was_left_out_does_not_blame_it():
    history = History()
    history.add({"diffusion": torch.tensor(1.0), "core/attention": torch.tensor(2.0)})
    history.add({"diffusion": torch.tensor(torch.nan)})
    history.fetch()
    assert history.not_finite(1) == ["diffusion"]
    assert history.not_finite(0) == []
