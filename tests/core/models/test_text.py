"""Prompts through every encoder of a model, with words or with a concept in the slot."""

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from small_pipelines import pipeline

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.text import encode_prompts

TEMPLATES = ["a photo of a {} in the snow", "{}"]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request: pytest.FixtureRequest) -> DiffusersModel:
    return DiffusersModel.from_pipeline(pipeline(request.param))


@pytest.mark.parametrize("words", ["dog", "teddy bear"])
def test_a_concept_of_the_words_own_vectors_is_the_words(model: DiffusersModel, words: str) -> None:
    own = {name: encoder.table()[encoder.tokenize(words)] for name, encoder in model.text_encoders.items()}
    concept, plain = encode_prompts(model, TEMPLATES, vectors=own), encode_prompts(model, TEMPLATES, words=words)
    for name in model.text_encoders:
        assert torch.equal(concept[name].tokens, plain[name].tokens)
        pooled, reference = concept[name].pooled, plain[name].pooled
        assert (pooled is None and reference is None) or torch.equal(pooled, reference)


def test_every_layer_reads_the_prompt_with_its_own_vectors_and_the_pooled_one_is_the_words(
    model: DiffusersModel,
) -> None:
    """One batch of all copies gives what encoding each alone gives."""
    generator = torch.Generator().manual_seed(0)
    own = {
        name: torch.randn(4, 2, encoder.width, generator=generator) * 0.05
        for name, encoder in model.text_encoders.items()
    }
    word, layers = ({name: one[part] for name, one in own.items()} for part in (0, slice(1, None)))
    together = encode_prompts(model, TEMPLATES, vectors=word, layers=layers)
    alone = encode_prompts(model, TEMPLATES, vectors=word)
    for name, found in together.items():
        equal_but_for_rounding(found.tokens, alone[name].tokens)
        assert (found.pooled is None) == (alone[name].pooled is None)
        if found.pooled is not None:
            equal_but_for_rounding(found.pooled, alone[name].pooled)
    for index in range(3):
        one = encode_prompts(model, TEMPLATES, vectors={name: value[index] for name, value in layers.items()})
        for name, found in together.items():
            equal_but_for_rounding(found.layers[index], one[name].tokens)


def test_tokens_before_the_concept_cannot_see_it(model: DiffusersModel) -> None:
    with model.session():
        vectors = {name: encoder.table()[:1].clone().requires_grad_() for name, encoder in model.text_encoders.items()}
        for name, encoding in encode_prompts(model, TEMPLATES[:1], vectors=vectors).items():
            before, after = encoding.tokens[0, :5].sum(), (encoding.tokens[0, 5:] ** 2).sum()
            (early,) = torch.autograd.grad(before, vectors[name], retain_graph=True)
            (late,) = torch.autograd.grad(after, vectors[name])
            assert early.abs().max() == 0
            assert late.abs().max() > 0


def test_a_missing_encoder_is_named(model: DiffusersModel) -> None:
    with pytest.raises(ValueError, match="clip_l"):
        encode_prompts(model, TEMPLATES, vectors={"clip_h": torch.zeros(1, 8)})
