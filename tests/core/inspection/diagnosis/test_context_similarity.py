"""sim1 and sim2 on the bundled text encoder: what must hold for any word."""

import pytest
import torch

from contextual_inversion.core.inspection.diagnosis.context_similarity import (
    ContextProbe,
    context_similarity,
    word_position,
)
from contextual_inversion.core.inspection.world.world_evaluation import context_probes
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.prompts.tokens import tokenize_prompt

SNOW = ContextProbe("a photo of a {} in the snow", "snow", "a photo in the snow")


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return DiffusersModel.from_tiny(load_tiny())


def row(model: DiffusersModel, word: str) -> dict[str, torch.Tensor]:
    encoder = model.text_encoders["clip_l"]
    return {"clip_l": encoder.table()[encoder.tokenize(word)].detach().clone()}


def test_a_word_and_its_own_input_embedding_are_the_same(model: DiffusersModel) -> None:
    as_words = context_similarity(model, context_probes(), words="cat")
    as_vectors = context_similarity(model, context_probes(), vectors=row(model, "cat"))
    assert as_vectors == pytest.approx(as_words, abs=1e-6)


def test_values_equal_a_computation_by_hand(model: DiffusersModel) -> None:
    encoder = model.text_encoders["clip_l"]

    def outputs(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenize_prompt(encoder, text).ids])
        with torch.no_grad():
            return encoder.encode(encoder.table()[ids], ids).tokens[0].double()

    # BOS a photo of a cat in the snow: cat is 5, snow is 8; BOS a photo in the snow: snow is 5
    ours, theirs = outputs("a photo of a cat in the snow"), outputs("a photo in the snow")
    expected = torch.cosine_similarity(ours[5], ours[8], dim=0), torch.cosine_similarity(ours[8], theirs[5], dim=0)
    found = context_similarity(model, [SNOW], words="cat")
    assert found == pytest.approx([float(value) for value in expected], abs=1e-6)


def test_a_word_that_is_not_there_before_the_context_leaves_sim2_at_one(model: DiffusersModel) -> None:
    # The encoder is causal: what comes after a token cannot change it.
    probe = ContextProbe("a photo in the snow of a {}", "snow", "a photo in the snow")
    assert context_similarity(model, [probe], words="cat").sim2 == pytest.approx(1.0, abs=1e-6)


def test_the_concept_itself_is_never_taken_for_the_context_word(model: DiffusersModel) -> None:
    encoder = model.text_encoders["clip_l"]
    prompt = tokenize_prompt(encoder, "a {} in the snow", words="snow")
    assert word_position(encoder, prompt, "snow") == 5
    with pytest.raises(ValueError, match="not in the prompt"):
        word_position(encoder, tokenize_prompt(encoder, "a {} on grass", words="snow"), "snow")


def test_no_probes_is_an_error(model: DiffusersModel) -> None:
    with pytest.raises(ValueError, match="no probes"):
        context_similarity(model, [], words="cat")
