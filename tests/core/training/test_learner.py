"""What a training hands over at its end."""

import math

import numpy as np
import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel, pictures

from contextual_inversion.core.maths.norms import vocabulary_norm
from contextual_inversion.core.models.words import starting_vectors
from contextual_inversion.core.training.run.events import CheckpointSaved, Started, Step
from contextual_inversion.core.training.run.loss_scale import LOSS_SCALE
from contextual_inversion.core.training.run.schedules import learning_rate_factor
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train


def step(learner, gradient):
    """One step of these gradients; whether it failed."""
    for number, value in enumerate(learner.leaves.values()):
        draws = torch.Generator().manual_seed(number)
        value.grad = torch.randn(value.shape, generator=draws) + gradient
    return bool(learner.step(torch.tensor(1.0)))


@pytest.mark.parametrize("overflow", [3, 4, 5, None])
def test_the_window_holds_the_norm_of_the_rows_that_stay_whichever_step_overflows(overflow):
    """METHODS.md C5 in fp16: a step that is undone must not leave the norm of rows that nobody kept."""
    settings = TrainSettings(
        class_word="dog", vectors=2, steps=10, learning_rate=0.1, precision="fp16", norm_mode="core_window"
    )
    with train(StubModel(), pictures(), settings) as run:
        next(run)
        learner, lengths = run.learner, {}
        for number in range(1, 7):
            assert not step(learner, math.inf if number == overflow else float(learner.scale.value))
            lengths[number] = learner.vectors["clip_l"].detach().norm(dim=1)
    assert (lengths[2] - lengths[1]).abs().min() > 1e-3
    for number in (5, 6):
        torch.testing.assert_close(lengths[number], lengths[4], rtol=1e-6, atol=0)


def test_words_and_weights_have_rates_of_their_own_on_one_schedule():
    settings = TrainSettings(
        class_word="dog", method="custom-diffusion", steps=5, batch=2, learning_rate=0.01, weight_rate=0.002,
        schedule="cosine", warmup=2,
    )  # fmt: skip
    rates = []
    with train(StubModel(), pictures(), settings) as run:
        next(run)
        run.learner.optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
        )
        list(run)
    factors = [learning_rate_factor(number, 5, schedule="cosine", warmup=2) for number in range(5)]
    assert factors[0] < factors[1] < factors[2] > factors[4]
    assert rates == [[pytest.approx(0.01 * factor), pytest.approx(0.002 * factor)] for factor in factors]


def test_the_average_of_weights_is_their_running_mean():
    settings = TrainSettings(class_word="dog", method="refine-all", steps=4, batch=2, weight_rate=0.01, ema=0.75)
    expected: dict[str, torch.Tensor] = {}
    with train(StubModel(), pictures(), settings) as run:
        for event in run:
            now = {name: value.detach().clone() for name, value in run.learner.weights.items()}
            if isinstance(event, Started):
                expected = now
            elif isinstance(event, Step):
                expected = {name: 0.75 * value + 0.25 * now[name] for name, value in expected.items()}
    for name, value in run.learner.learned_weights().items():
        equal_but_for_rounding(value, expected[name])
    assert any(not torch.allclose(now[name], expected[name]) for name in now)


def test_on_the_sphere_only_words_follow_the_tangent():
    """METHODS.md 6 no. 1: what the optimizer sees of a vector's gradient; a weight's is as it came."""
    settings = TrainSettings(class_word="dog", method="custom-diffusion", steps=3, norm_mode="spherical")
    with train(StubModel(), pictures(), settings) as run:
        next(run)
        learner, seen = run.learner, {}
        learner.optimizer.register_step_pre_hook(
            lambda *_: seen.update(
                {name: (value.grad.clone(), value.detach().clone()) for name, value in learner.leaves.items()}
            )
        )
        step(learner, 0.5)
    for number, (name, (gradient, value)) in enumerate(seen.items()):
        came = torch.randn(value.shape, generator=torch.Generator().manual_seed(number)) + 0.5
        if name in learner.vectors:
            assert (gradient * value).sum(-1).abs().max() < 1e-5 < (came * value).sum(-1).abs().min()
        else:
            assert torch.equal(gradient, came)


def test_losses_are_scaled_where_gradients_are_in_fp16_and_a_checkpoint_keeps_the_scale():
    for dtype, precision, scale in (
        (torch.float32, "model", 1.0),
        (torch.bfloat16, "model", 1.0),
        (torch.float32, "fp16", LOSS_SCALE),
        (torch.float16, "model", LOSS_SCALE),
    ):
        found = []
        for _ in range(2):
            model = StubModel()
            model.dtype = dtype
            with train(model, pictures(), TrainSettings(class_word="dog", precision=precision)) as run:
                next(run)
                found.append(run.learner)
        first, second = found
        assert (float(first.scale.value), first.scale.on) == (scale, scale > 1)
        first.scale.value, first.scale.calm = torch.tensor(8.0), torch.tensor(5.0)
        second.load(first.state())
        assert (float(second.scale.value), float(second.scale.calm)) == (8.0, 5.0)


def test_an_overflow_without_a_scale_left_to_lower_is_a_failure():
    with train(StubModel(), pictures(), TrainSettings(class_word="dog", precision="fp16")) as run:
        next(run)
        learner = run.learner
        learner.scale.value.fill_(2.0)
        assert not step(learner, math.inf)
        before = learner.vectors["clip_l"].detach().clone()
        assert step(learner, math.inf)
        assert step(learner, 1.0), "nothing moves after a failure"
        assert torch.equal(learner.vectors["clip_l"], before)


@pytest.mark.parametrize("norm_mode", ["fixed_mean", "spherical", "dti"])
def test_the_average_has_the_length_that_is_held(norm_mode):
    """METHODS.md 6 no. 1: the norm is that of the vocabulary, also where what is kept is a mean of many steps."""
    settings = TrainSettings(
        class_word="dog", vectors=2, steps=5, batch=2, learning_rate=0.1, ema=0.75, norm_mode=norm_mode
    )
    model = StubModel()
    with train(model, pictures(), settings) as run:
        *_, last = run
    encoder = model.text_encoders["clip_l"]
    words = vocabulary_norm(encoder.table().detach(), sorted({encoder.bos, encoder.eos, encoder.pad}))
    torch.testing.assert_close(last.concept.vectors["clip_l"].norm(dim=-1), words.expand(2))


DTI = {"class_word": "dog and cat", "vectors": 2, "batch": 2, "learning_rate": 0.04, "norm_mode": "dti", "kappa": 0.1}


def dti_by_hand(settings, model, gradients):
    """METHODS.md 5.1 in NumPy's float64: the rows after each of the gradients."""
    encoder = model.text_encoders["clip_l"]
    rows = starting_vectors(encoder, settings.class_word, settings.vectors).double().numpy()
    mu = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    v, m = mu, float(vocabulary_norm(encoder.table().detach(), sorted({encoder.bos, encoder.eos, encoder.pad})))
    for number, gradient in enumerate(gradients):
        factor = learning_rate_factor(number, settings.steps, schedule=settings.schedule, warmup=settings.warmup)
        g = m * gradient - settings.kappa * mu
        g = g - (g * v).sum(1, keepdims=True) * v
        v = v - settings.learning_rate * factor * g / np.linalg.norm(g, axis=1, keepdims=True)
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return m * v


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_word_that_is_a_direction_takes_its_own_steps_whatever_the_optimizer(optimizer):
    settings = TrainSettings(**DTI, steps=6, optimizer=optimizer, schedule="cosine", warmup=1)
    model, gradients = StubModel(), []
    with train(model, pictures(), settings) as run:
        next(run)
        move = run.learner._move

        def noting(found, good):
            gradients.append(found[0].double().numpy().copy())
            move(found, good)

        run.learner._move = noting
        *_, last = run
    found = last.concept.vectors["clip_l"].double().numpy()
    np.testing.assert_allclose(found, dti_by_hand(settings, model, gradients), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("method", ["ti", "xti", "custom-diffusion"])
def test_steps_of_one_angle_resume_to_the_same_bits_and_leave_weights_to_the_optimizer(method, tmp_path):
    own = {**DTI, "method": method, "weight_rate": 0.01, "ema": 0.5, "log_every": 3}
    with train(StubModel(), pictures(), TrainSettings(**own, steps=6)) as run:
        *_, whole = run
    settings = TrainSettings(**own, steps=6, checkpoint_dir=tmp_path, checkpoint_every=3)
    with train(StubModel(), pictures(), settings) as run:
        for event in run:
            if isinstance(event, CheckpointSaved):
                break
    with train(StubModel(), pictures(), settings, resume=tmp_path) as run:
        assert next(run).first_step == 3
        *_, resumed = run
    assert torch.equal(resumed.concept.vectors["clip_l"], whole.concept.vectors["clip_l"])
    for name, value in (whole.concept.lora or {}).items():
        assert torch.equal(resumed.concept.lora[name], value)
    assert bool(whole.concept.lora) == (method == "custom-diffusion")


def test_a_step_of_one_angle_that_is_not_finite_is_undone():
    with train(StubModel(), pictures(), TrainSettings(**DTI, steps=6, precision="fp16")) as run:
        next(run)
        learner = run.learner
        assert not step(learner, 1.0)
        before = learner.vectors["clip_l"].detach().clone()
        assert not step(learner, math.inf)
        assert torch.equal(learner.vectors["clip_l"], before)
        assert not step(learner, 1.0)
        assert not torch.equal(learner.vectors["clip_l"], before)


def test_a_direction_is_pulled_to_one_class_word_and_earlier_checkpoints_know_no_pull():
    with pytest.raises(ValueError, match="one class word"):
        TrainSettings(**{**DTI, "class_word": ("dog", "cat")})
    assert "kappa" not in TrainSettings(class_word="dog").identity()
    assert TrainSettings(**DTI).identity()["kappa"] == 0.1
    with pytest.raises(ValueError, match="kappa"):
        TrainSettings(class_word="dog", kappa=-1.0)
