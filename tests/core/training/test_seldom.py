"""Regularizers asked in every k-th step, with k times the weight: the same on average, and nothing in between."""

import json
import math

import pytest
import torch
from stub_model import StubModel, pictures
from test_rows_encoded import counting
from test_trainer import Pull

from contextual_inversion.cli.training_bar import as_line, means
from contextual_inversion.core.models.protocol import TokenMeans
from contextual_inversion.core.training.regularizers.context import ATTENTION_SHARE, CoReRegularizer
from contextual_inversion.core.training.regularizers.nearest_word import NearestTokenRegularizer
from contextual_inversion.core.training.regularizers.prior import PriorPreservation
from contextual_inversion.core.training.regularizers.seam import LossTerm, Terms
from contextual_inversion.core.training.run.events import Step
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train

PROMPTS = ("a {} in the snow", "a red {} at sea", "drawing of a {}")
SEEN = torch.tensor([1, math.nan, 3, math.nan])


def core(**options):
    return CoReRegularizer(PROMPTS, **{"embedding_weight": 0.25, "attention_weight": 0.5, **options})


def begun(*regularizers, model=None, **settings):
    """A training before its first step."""
    given = TrainSettings(**{"class_word": "dog", "steps": 24, "batch": 3, "resolution": 64, **settings})
    run = train(model or StubModel(), pictures(), given, regularizers=regularizers)
    next(run)
    return run


def answered(run, step):
    """name -> (weight, value) of every term of a step at the word as it is, those of the attention among them."""
    objective = run.prepared.objective
    noised = objective.instances(step).noised
    found = {}
    for terms in objective.terms(step, noised.latents, noised.timesteps):
        found |= terms.losses
        if terms.attention is not None:
            probe, seen = TokenMeans(), terms.attention
            run.model.predict(seen.latents, seen.timesteps, seen.conditioning, probe)
            found |= terms.finish(probe.layers)
    return {name: (term.weight, term.value) for name, term in found.items()}


def gradient(run, step):
    """Of all terms of a step as they weigh, at the word as it is."""
    leaves = list(run.learner.leaves.values())
    total = [torch.zeros_like(leaf) for leaf in leaves]
    for weight, value in answered(run, step).values():
        parts = torch.autograd.grad(weight * value, leaves)
        total = [so_far + part for so_far, part in zip(total, parts, strict=True)]
    return torch.cat([part.flatten() for part in total])


class Constant(Pull):
    """The same gradient at each step."""

    def __call__(self, step):
        return Terms({"pull/norm": LossTerm(sum(copy.square().sum() for copy in step.copies.values()), self.weight)})


@pytest.mark.parametrize("every", [2, 4, 8])
def test_over_k_steps_a_gradient_that_is_always_the_same_adds_up_to_the_same(every):
    """To the last bit, as k is a power of two."""
    with begun(Constant(0.3)) as always, begun(Constant(0.3), regularize_every=every) as seldom:
        for start in (0, every):
            steps = range(start, start + every)
            ours, theirs = (sum(gradient(run, step) for step in steps) for run in (seldom, always))
            assert torch.equal(ours, every * gradient(always, start))
            torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=0)  # added up in k steps and not at once


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("encoders", [1, 2])
def test_what_is_asked_is_what_every_step_would_have_asked_there_k_times_as_heavy(every, encoders):
    """Value by value the same draws, so that over many steps the mean is that of asking always: what is drawn at a
    step hangs on no other step."""
    added = lambda: (core(), NearestTokenRegularizer(weight=0.5, norm_weight=0.25))  # noqa: E731 - fresh ones
    with (
        begun(*added(), model=StubModel(encoders=encoders)) as always,
        begun(*added(), model=StubModel(encoders=encoders), regularize_every=every) as seldom,
    ):
        for step in range(3 * every):
            ours, theirs = answered(seldom, step), answered(always, step)
            assert set(theirs) == {"core/embedding", "core/attention", "nearest/contrastive", "nearest/norm"}
            if step % every:
                assert ours == {}
                continue
            assert set(ours) == set(theirs)
            for name, (weight, value) in theirs.items():
                assert ours[name][0] == every * weight
                assert torch.equal(ours[name][1], value)


def test_the_weight_is_in_the_total_and_not_in_what_is_logged():
    with begun(core()) as always, begun(core(), regularize_every=4) as seldom:
        ours, theirs = (run.prepared.objective.gather(4, lambda _: None) for run in (seldom, always))
    assert set(ours[0]) == set(theirs[0]) == {"diffusion", "core/embedding", "core/attention"}
    assert all(torch.equal(ours[0][name], value) for name, value in theirs[0].items())
    expected = ours[0]["diffusion"] + 1.0 * ours[0]["core/embedding"] + 2.0 * ours[0]["core/attention"]
    assert torch.equal(ours[1], expected)


@pytest.mark.parametrize("method", ["ti", "xti", "word-lora"])
def test_a_step_between_is_a_plain_one(method):
    """Not a prompt more is encoded, nothing more goes through the UNet, no number is drawn for it, and the gradient is
    that of plain textual inversion, to the last bit."""
    asked = []

    class Drawing(Pull):
        def __call__(self, step):
            asked.append(step.generator.get_state())
            return super().__call__(step)

    own = {"method": method, "rank": 2}
    with begun(**own) as plain, begun(core(), Drawing(0.5), regularize_every=3, **own) as seldom:
        rows = {run: counting(run.model) for run in (plain, seldom)}
        for step in range(7):
            found = {}
            for run, encoded in rows.items():
                encoded.clear(), run.model.predictions.clear()
                losses = []
                values, _ = run.prepared.objective.gather(step, losses.append)
                leaves = list(run.learner.leaves.values())
                found[run] = values, torch.autograd.grad(losses[0], leaves, allow_unused=True), list(encoded)
            (ours, gradients, encoded), (theirs, expected, alone) = found[seldom], found[plain]
            if step % 3 == 0:
                assert len(encoded) > len(alone)
                assert len(seldom.model.predictions) > len(plain.model.predictions)
                continue
            assert (set(ours), encoded) == ({"diffusion"}, alone)
            assert torch.equal(ours["diffusion"], theirs["diffusion"])
            assert seldom.model.predictions == plain.model.predictions == [(3, False, True)]
            for one, other in zip(gradients, expected, strict=True):
                assert (one is None and other is None) or torch.equal(one, other)
    assert len(asked) == 3


def test_in_every_step_is_what_it_was_before(run):
    """Bit for bit; and a checkpoint of before is gone on with."""
    given = {"regularizers": [core()], "norm_mode": "core_window", "steps": 8}
    without, one = run(StubModel(), **given), run(StubModel(), **given, regularize_every=1)
    assert torch.equal(without.concept.vectors["clip_l"], one.concept.vectors["clip_l"])
    assert all(torch.equal(without.losses[name], one.losses[name]) for name in one.losses)
    ours, theirs = (TrainSettings("dog", regularize_every=every).identity() for every in (1, 2))
    assert "regularize_every" not in ours
    assert theirs == {**ours, "regularize_every": 2}


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_stopped_between_and_gone_on_with_it_is_the_same_word(tmp_path, run, stop):
    def settings(folder=None):
        return TrainSettings("dog", steps=9, batch=2, regularize_every=2, checkpoint_dir=folder, log_every=2)

    whole = run(StubModel(), regularizers=[core(), Pull(0.1)], steps=9, batch=2, regularize_every=2)
    with train(StubModel(), pictures(), settings(tmp_path), regularizers=[core(), Pull(0.1)]) as first:
        for event in first:
            if isinstance(event, Step) and event.step == stop:
                first.stop()
    again = [core(), Pull(0.1)]
    with train(StubModel(), pictures(), settings(tmp_path), regularizers=again, resume=tmp_path) as second:
        *_, last = second
    assert last.step == 9
    assert torch.equal(whole.concept.vectors["clip_l"], last.concept.vectors["clip_l"])
    for name, values in whole.losses.items():
        assert torch.equal(values.nan_to_num(-1), last.losses[name].nan_to_num(-1))
        assert values.isfinite().tolist() == [name == "diffusion" or step % 2 == 0 for step in range(9)]


def test_prior_preservation_is_a_part_of_every_batch():
    """Class pictures are the other half of the papers' batch; CoRe beside them is asked seldom."""
    prior = PriorPreservation(resolution=64, weight=0.5, pictures=2, batch=2, steps=1)
    with begun(prior, core(), method="word-lora", rank=2, regularize_every=3) as run:
        found = [answered(run, step) for step in range(6)]
    assert [one["prior/diffusion"][0] for one in found] == [0.5] * 6
    assert ["core/embedding" in one for one in found] == [True, False, False] * 2


def test_the_attention_of_a_single_latent_is_in_a_third_of_the_asked_steps():
    """Drawn by chance among every k-th step, with three times k times the weight: one on average, as before."""
    every, steps = 2, 600
    with begun(core(embedding_weight=0), batch=1, steps=steps, regularize_every=every) as run:
        found = [answered(run, step) for step in range(steps)]
    weights = [one["core/attention"][0] if one else 0.0 for one in found]
    assert set(weights) == {0.0, ATTENTION_SHARE * every * 0.5}
    assert set(weights[1::2]) == {0.0}
    assert sum(weights) / steps == pytest.approx(0.5, abs=0.08)


def test_too_seldom_is_refused():
    with pytest.raises(ValueError, match="regularize_every"):
        TrainSettings("dog", regularize_every=0)
    with pytest.raises(ValueError, match="10 is the most"):
        TrainSettings("dog", steps=10, regularize_every=11)
    assert TrainSettings("dog", steps=10, regularize_every=10).regularize_every == 10
    with pytest.raises(ValueError, match="diffusion loss"):
        TrainSettings("dog", diffusion_weight=0.0, regularize_every=2)


def test_a_mean_is_of_the_steps_that_a_loss_is_in(run):
    last = run(StubModel(), regularizers=[core()], steps=10, log_every=3, regularize_every=4)
    losses = last.losses["core/embedding"]
    assert losses.isfinite().nonzero().flatten().tolist() == [0, 4, 8]
    # The last tenth is one step, in which it was not asked.
    kept = last.concept.provenance["losses"]
    assert kept["core/embedding"] == float(losses[8])
    assert kept["diffusion"] == float(last.losses["diffusion"][9])
    json.dumps(kept, allow_nan=False)


def test_the_bar_keeps_what_it_last_saw_and_lines_have_no_number_where_there_is_none():
    shown = means({"diffusion": torch.tensor([1.0, 2.0, 3.0, 4.0]), "core/embedding": SEEN})
    assert shown == {"diffusion": "2.5", "core/embedding": "2"}
    between = means({"diffusion": torch.tensor([5.0]), "core/embedding": SEEN[1:2]})
    assert shown | between == {"diffusion": "5", "core/embedding": "2"}
    line = as_line(Step(4, 8, {"core/embedding": SEEN.double()}))
    assert json.loads(json.dumps(line, allow_nan=False))["losses"] == {"core/embedding": [1, None, 3, None]}
