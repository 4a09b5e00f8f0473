"""Random numbers, learning rates and loss history."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.training.presets import PRESETS
from contextual_inversion.core.training.run.draws import draw_step, generator_for, sample_order
from contextual_inversion.core.training.run.history import History
from contextual_inversion.core.training.run.schedules import learning_rate_factor

SCHEDULES = ("constant", "linear", "cosine", "polynomial", "inverse_sqrt")


@given(seed=st.integers(0, 2**40), batch=st.integers(1, 9), pictures=st.integers(1, 6))
def test_every_pass_shows_every_picture_once(seed, batch, pictures):
    row = [index for step in range(3 * pictures) for index in sample_order(seed, step, batch, pictures)]
    for start in range(0, len(row), pictures):
        assert sorted(row[start : start + pictures]) == list(range(pictures))


def test_streams_and_steps_have_numbers_of_their_own():
    first = [
        float(torch.rand((), generator=generator_for(seed, stream, step)))
        for seed in (0, 1)
        for stream in ("noise", "order")
        for step in range(5)
    ]
    assert len(set(first)) == 20


def test_draws_are_uniform_over_timesteps_and_standard_normal():
    draws = [
        draw_step(
            0,
            step,
            batch=64,
            pictures=4,
            versions=3,
            shape=(4, 8, 8),
            timesteps=10,
            templates=2,
            device=torch.device("cpu"),
        )
        for step in range(50)
    ]
    t = torch.cat([draw.timesteps for draw in draws])
    counts = torch.bincount(t, minlength=10)
    # 3200 draws over 10 bins: a standard deviation of 17.
    assert len(counts) == 10
    assert bool(((counts - 320).abs() < 5 * 17).all())
    noise = torch.cat([draw.noise for draw in draws])
    assert abs(float(noise.mean())) < 5 / math.sqrt(noise.numel())
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert set(torch.cat([draw.rows for draw in draws]).tolist()) == set(range(12))


@given(schedule=st.sampled_from(SCHEDULES), steps=st.integers(1, 50), warmup=st.integers(0, 60), data=st.data())
def test_learning_rates_rise_in_the_warmup_and_never_after(schedule, steps, warmup, data):
    factors = [learning_rate_factor(step, steps, schedule=schedule, warmup=warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    ramp, rest = factors[:warmup], factors[warmup:]
    assert ramp == sorted(ramp)
    assert rest == sorted(rest, reverse=True)
    if rest:
        assert rest[0] == 1
    if schedule == "constant":
        assert set(rest) <= {1.0}


def test_history_fetches_each_value_once_and_marks_what_is_missing():
    history = History()
    history.add({"a": torch.tensor(1.0)})
    history.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0)})
    first = history.fetch()
    assert first["a"].tolist() == [1, 2]
    assert math.isnan(first["b"][0])
    history.add({"b": torch.tensor(6.0)})
    assert history.fetch()["b"].tolist() == [6]
    assert history.fetch() == {}
    assert len(history) == 3
    again = History(history.tensors())
    again.cut(2)
    assert again.tensors()["a"].tolist() == [1, 2]
    assert again.tensors()["b"].tolist()[1:] == [5]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_settings(name):
    preset = PRESETS[name]
    settings = preset.settings("dog", steps=7)
    assert settings.steps == 7
    assert preset.source
