"""What a contextualizer is pretrained with, by its text encoder."""

import pytest
import torch

from contextual_inversion.core.training.contextualizer.pretraining import PretrainSettings
from contextual_inversion.core.training.contextualizer.recipes import NAMED_CAPTIONS, recommended_pretraining


class Encoder:
    def __init__(self, width, tokens):
        self.width, self.tokens = width, tokens

    def table(self):
        return torch.empty(self.tokens, 1)


@pytest.mark.parametrize(
    ("width", "tokens", "captions"),
    [(768, 49_408, 0), (4096, 32_128, 0), (3584, 152_064, NAMED_CAPTIONS), (2304, 256_000, NAMED_CAPTIONS)],
)
def test_of_a_large_vocabulary_only_what_captions_use_can_be_guessed(width, tokens, captions):
    assert PretrainSettings(**recommended_pretraining(Encoder(width, tokens))).vocabulary_captions == captions


def test_a_narrow_encoder_has_a_recipe_of_its_own():
    both = [recommended_pretraining(Encoder(32, tokens)) for tokens in (49_408, 152_064)]
    assert both[0] == both[1]
    assert both[0]["vocabulary_captions"] > 0
