"""Drawing the protocol's pictures: all that a concept may hold is applied, and each picture stands for itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.inspection.evaluation.generation import Generation, generate
from contextual_inversion.core.inspection.evaluation.protocol import Cell, ProtocolError, ProtocolPrompt, Subject
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load_tiny

FAST = Generation(pictures=1, steps=2, guidance=2.0, size=64, batch=1)
CELL = Cell(Subject("thing", "house", "inanimate", ()), 3, ProtocolPrompt("a photo of a {} in the snow", "place"))


@pytest.fixture(scope="module")
def model():
    return DiffusersModel.from_tiny(load_tiny(), device="cpu")


@pytest.fixture(scope="module")
def concept():
    vectors = torch.randn(2, 128, generator=torch.Generator().manual_seed(3)) * 0.1
    return Concept("thing", "house", {"clip_l": vectors})


@pytest.fixture
def drawn(model, tmp_path_factory):
    """drawn(concept, settings, cell) -> the pictures, drawn into a folder of their own."""

    def draw(concept: Concept, settings: Generation = FAST, cell: Cell = CELL) -> list[np.ndarray]:
        paths = list(generate(model, {"thing": concept}, [cell], tmp_path_factory.mktemp("drawn"), settings))
        assert [path.parent.name for path in paths] == [f"{cell.number:02d}"] * settings.pictures
        return [np.asarray(Image.open(path)).astype(int) for path in paths]

    return draw


def far(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def test_vectors_for_every_layer_are_used(drawn, model, concept):
    layers = len(model.cross_attention_layers())
    same = concept.vectors["clip_l"].expand(layers, -1, -1).clone()
    other = same.clone()
    other[: layers // 2] = torch.randn(2, 128, generator=torch.Generator().manual_seed(9)) * 0.1
    [plain] = drawn(concept)
    assert far(drawn(replace(concept, layer_vectors={"clip_l": same}))[0], plain) <= 1
    assert far(drawn(replace(concept, layer_vectors={"clip_l": other}))[0], plain) > 3
    with pytest.raises(ValueError, match="layers of another model"):
        drawn(replace(concept, layer_vectors={"clip_l": same[1:]}))


def test_a_lora_is_used_and_taken_off_again(drawn, model, concept):
    name = next(name for name in model.linear_layers() if name.endswith("attn2.to_v"))
    layer, stem = model.linear_layers()[name], "lora_unet_" + name.replace(".", "_")
    generator = torch.Generator().manual_seed(0)
    lora = {
        f"{stem}.lora_down.weight": torch.randn(2, layer.in_features, generator=generator),
        f"{stem}.lora_up.weight": torch.randn(layer.out_features, 2, generator=generator),
    }
    [plain] = drawn(concept)
    assert far(drawn(replace(concept, lora=lora))[0], plain) > 3
    assert np.array_equal(drawn(concept)[0], plain)
    with pytest.raises(ValueError, match="another kind of model"):
        drawn(replace(concept, lora={key.replace("to_v", "to_x"): value for key, value in lora.items()}))


def test_a_picture_depends_on_its_prompt_and_number_alone(drawn, concept):
    several = drawn(concept, replace(FAST, pictures=3, batch=3))
    [alone] = drawn(concept)
    # Bytes: batched and single convolutions may round differently by less than one grey level.
    assert far(several[0], alone) <= 1
    assert far(several[1], several[0]) > 3
    assert far(drawn(concept, cell=replace(CELL, number=4))[0], alone) > 3
    assert far(drawn(concept, replace(FAST, class_word=True))[0], alone) > 3
    assert far(drawn(concept, replace(FAST, eta=0.0))[0], alone) > 3
    assert far(drawn(concept, replace(FAST, seed=1))[0], alone) > 3


def test_a_subject_without_a_concept_is_named(model, tmp_path):
    with pytest.raises(ProtocolError, match="no concept for thing"):
        list(generate(model, {}, [CELL], tmp_path, FAST))
    assert not list(tmp_path.iterdir())
