"""Recipes: what they say, and why the bundled model's differ."""

import pytest
import torch

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.training.presets import PRESETS, demo_preset

NAMED = ("custom-diffusion", "dreambooth-lora", "dreambooth")
"""Methods whose word is an identifier before the class word."""


def test_the_papers_keep_the_class_word_where_weights_and_an_identifier_are_trained():
    by_method = {preset.method: preset for preset in PRESETS.values()}
    assert {name for name, preset in by_method.items() if "identifier" in preset.values} == set(NAMED)
    assert {name for name, preset in by_method.items() if preset.prior} == set(NAMED)


@pytest.mark.parametrize("method", NAMED)
def test_the_bundled_models_recipe_does_not(method):
    assert not demo_preset(method).prior


def test_because_its_encoder_does_not_hear_the_identifier():
    """Class pictures would pull against all that is to be learned."""
    (encoder,) = DiffusersModel.from_tiny(load_tiny()).text_encoders.values()

    def last(text: str) -> torch.Tensor:
        tokens = [encoder.bos, *encoder.tokenize(text), encoder.eos]
        ids = torch.tensor([tokens + [encoder.pad] * (encoder.max_length - len(tokens))])
        with torch.no_grad():
            return encoder.encode(encoder.table()[ids], ids).tokens[0, len(tokens) - 1]

    def nearness(word: str) -> float:
        return float(torch.cosine_similarity(last("a photo of a house"), last(f"a photo of a {word} house"), dim=0))

    assert nearness("sks") > 0.98
    assert nearness("red") < 0.7
