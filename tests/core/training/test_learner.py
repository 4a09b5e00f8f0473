"""What a training hands over at its end."""

import pytest
import torch
from stub_model import StubModel, pictures

from contextual_inversion.core.maths.norms import vocabulary_norm
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train


@pytest.mark.parametrize("norm_mode", ["fixed_mean", "spherical"])
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
