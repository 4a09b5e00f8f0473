"""Before the first step nothing is encoded but what it draws."""

import torch
from stub_model import StubModel

from contextual_inversion.core.training.run.draws import drawn_rows
from contextual_inversion.core.training.run.events import Step
from contextual_inversion.core.training.settings import Augmentation, TrainSettings
from contextual_inversion.core.training.trainer import train

PICTURES = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))
SETTINGS = {"batch": 1, "augmentation": Augmentation(bank=16), "resolution": 64, "log_every": 1}


def encoded_by_step(model, settings):
    """How many pictures had been encoded when each step was done, and how often the autoencoder was asked."""
    counted, asked, encode = [0], [0], model.to_latents

    def counting(images):
        counted[0] += len(images)
        asked[0] += 1
        return encode(images)

    model.to_latents = counting
    with train(model, PICTURES, settings) as run:
        return [(counted[0], asked[0]) for event in run if isinstance(event, Step)]


def test_the_first_step_waits_for_what_it_draws_alone():
    steps = 40
    settings = TrainSettings("dog", steps=steps, **SETTINGS)
    found = encoded_by_step(StubModel(), settings)
    assert found[0] == (1, 1)
    drawn = {row for step in range(steps) for row in drawn_rows(settings.seed, step, 1, 4, 16)}
    assert found[-1][0] == len(drawn) < 4 * 16


def test_the_autoencoder_comes_a_few_times_and_not_at_every_step():
    """In a program that has no room for both, each time moves the whole model: steps 0, 1, 3, 7, 15, 31."""
    found = encoded_by_step(StubModel(), TrainSettings("dog", steps=40, **SETTINGS))
    coming = [step for step in range(40) if found[step][0] > (found[step - 1][0] if step else 0)]
    assert set(coming) <= {0, 1, 3, 7, 15, 31}
