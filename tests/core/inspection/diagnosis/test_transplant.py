"""Transplanted encodings: nothing, everything, and each position from where it should be."""

import pytest
import torch

from contextual_inversion.core.inspection.diagnosis.transplant import KINDS, transplanted
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import load_tiny

TEMPLATES = ["a photo of a {} in the snow", "{} at night"]
VECTORS = {"clip_l": torch.randn(3, 128, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return DiffusersModel.from_tiny(load_tiny())


def tokens(model: DiffusersModel, *kinds: str) -> torch.Tensor:
    return transplanted(model, TEMPLATES, VECTORS, "house", kinds)["clip_l"].tokens


def test_everything_is_the_concept_and_nothing_the_class_word(model: DiffusersModel) -> None:
    concept = encode_prompts(model, TEMPLATES, vectors=VECTORS)["clip_l"].tokens
    row = model.text_encoders["clip_l"].table()[model.text_encoders["clip_l"].tokenize("house")[0]]
    house = encode_prompts(model, TEMPLATES, vectors={"clip_l": row.float().repeat(3, 1)})["clip_l"].tokens
    assert torch.equal(tokens(model, *KINDS), concept)
    assert torch.equal(tokens(model), house)
    assert not torch.equal(concept, house)


def test_kinds_share_the_prompt_out_without_a_rest(model: DiffusersModel) -> None:
    none = tokens(model)
    changed = [(tokens(model, kind) != none).any(-1) for kind in KINDS]
    # Under a causal mask, words before the concept say the same with either; everything from it on differs.
    assert torch.stack(changed).sum(0).max() == 1
    [first, second] = torch.stack(changed).any(0)
    assert first.tolist() == [False] * 5 + [True] * 72
    assert second.tolist() == [False] + [True] * 76
    eot = changed[KINDS.index("eot")]
    assert eot.sum(1).tolist() == [1, 1]
    assert eot[0].nonzero().item() == 5 + 3 + 3
    padding = changed[KINDS.index("padding")]
    assert padding[0, 12:].all()
    assert not padding[0, :12].any()


def test_an_unknown_kind_is_named(model: DiffusersModel) -> None:
    with pytest.raises(ValueError, match="pads"):
        tokens(model, "pads")
