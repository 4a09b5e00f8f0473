"""What a file is follows from the names of its tensors, and whoever asks gets the same answer."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from contextual_inversion.core.files import (
    ConceptFileError,
    describe,
    kind_of,
    load_concept,
    load_embedding,
    save_bundle,
    save_embedding,
    save_xti,
)
from contextual_inversion.core.files.embedding import LEFT_OUT
from contextual_inversion.core.files.kinds import XTI_LAYERS, stem_of

from .conftest import WIDTHS, concept

KOHYA, DOTS = "lora_unet_down_blocks_0_attn2_to_k", "unet.down_blocks.0.attn2.to_k"
CHANGES = {
    "kohya": [f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight", f"{KOHYA}.alpha"],
    "kohya, one tensor": [f"{KOHYA}.lora_mid.weight"],
    "diffusers": [f"{DOTS}.lora.down.weight", f"{DOTS}.lora.up.weight"],
    "diffusers, processor": ["unet.attn2.processor.to_k_lora.down.weight", "unet.attn2.processor.to_k_lora.up.weight"],
    "diffusers, text encoder": ["text_encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight"],
    "PEFT": [f"base_model.model.{DOTS}.lora_A.weight", f"base_model.model.{DOTS}.lora_B.default.weight"],
    "PEFT, DoRA": [f"{DOTS}.lora_magnitude_vector", f"{DOTS}.lora_A.weight"],
    "DoRA": [f"{KOHYA}.dora_scale", f"{KOHYA}.lora_up.weight"],
    "LoHa": [f"{KOHYA}.hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")],
    "LoKr": [f"{KOHYA}.lokr_w1", f"{KOHYA}.lokr_w2_a", f"{KOHYA}.lokr_w2_b", f"{KOHYA}.lokr_t2"],
    "GLoRA": [f"diffusion_model.input_blocks.1.{part}.weight" for part in ("a1", "a2", "b1", "b2")],
    "OFT": [f"{KOHYA}.oft_blocks"],
    "norms": ["diffusion_model.out.0.w_norm", "diffusion_model.out.0.b_norm"],
    "differences": ["diffusion_model.out.2.diff", "diffusion_model.out.2.diff_b"],
    "whole weights": ["diffusion_model.out.2.set_weight"],
    "LyCORIS": ["lycoris_blocks_0_proj.something_new"],
}


@pytest.mark.parametrize("keys", CHANGES.values(), ids=CHANGES)
def test_every_spelling_of_a_change_of_layers_is_a_lora(tmp_path, keys):
    """As few tensors as there may be, of shapes that an embedding may have."""
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(320, 4) for key in keys}, path)
    assert kind_of(path) == "LoRA"
    told = describe(path)
    assert (told["kind"], told["vectors"]) == ("LoRA", [])
    assert len(told["lora"]["layers"]) == len({stem_of(key) for key in keys})
    with pytest.raises(ConceptFileError, match="is a LoRA without a word"):
        load_concept(path)
    with pytest.raises(ConceptFileError, match="no embedding but a LoRA"):
        load_embedding(path)
    save_file({"bundle_emb.x.clip_l": torch.ones(1, 768)} | {key: torch.ones(3, 2) for key in keys}, path)
    assert describe(path)["kind"] == "bundle"
    assert set(load_concept(path).lora) == set(keys)


@pytest.mark.parametrize(
    "key", ["<my-word>", "lora_teddy", "lycoris_flower", "my.diffuser", "alpha", "clip_l", "emb_params"]
)
def test_a_word_may_be_called_nearly_anything(tmp_path, key):
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(2, 768)}, path)
    assert kind_of(path) == describe(path)["kind"] == "embedding"
    assert load_concept(path).length == load_embedding(path).length == 2


@pytest.mark.parametrize(
    "tensors",
    [
        {"conv_in.weight": (320, 4)},
        {"model.0": (2, 2), "model.1": (2, 2)},
        {"conv_in.weight": (320, 4), "conv_in.bias": (320,)},
        {"clip_l": (1, 1, 768)},
        dict.fromkeys(XTI_LAYERS[:-1], (1, 768)),
    ],
    ids=lambda tensors: next(iter(tensors)),
)
def test_what_is_none_of_them_is_said_by_everyone_alike(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, path)
    errors = set()
    for ask in (kind_of, describe, load_concept, load_embedding):
        with pytest.raises(ConceptFileError, match="no embedding, LoRA or bundle") as error:
            ask(path)
        errors.add(str(error.value))
    assert len(errors) == 1
    assert all(len(error) < 400 for error in errors)


@pytest.mark.parametrize("family", WIDTHS)
def test_files_of_both_layouts_are_read_as_they_always_were(tmp_path, family):
    """The layout that used to be the default, and the one that is."""
    learned = concept(WIDTHS[family], layers=0)
    old, new = (save_embedding(learned, tmp_path, name, layout=name) for name in ("encoders", "auto"))
    assert set(load_file(old)) == set(WIDTHS[family])
    for path in (old, new):
        found = load_concept(path, widths=WIDTHS[family])
        assert all(torch.equal(found.vectors[name], value) for name, value in learned.vectors.items())
        assert found.provenance == learned.provenance


ONE, TWO = torch.randn(2, 768), torch.randn(2, 1280)


@pytest.mark.parametrize(
    ("tensors", "widths", "used", "unused"),
    [
        ({"clip_l": ONE, "clip_l_out": ONE + 1}, {"clip_l": 768}, {"clip_l"}, ["clip_l_out"]),
        ({"emb_params": ONE, "emb_params_out": ONE + 1}, {"clip_l": 768}, {"clip_l"}, ["emb_params_out"]),
        (
            {"clip_l": ONE, "clip_g": TWO, "clip_l_out": ONE + 1, "clip_g_out": TWO + 1},
            {"clip_l": 768, "clip_g": 1280},
            {"clip_l", "clip_g"},
            ["clip_g_out", "clip_l_out"],
        ),
        (
            {"clip_l": ONE, "clip_g": TWO, "t5": torch.randn(2, 4096)},
            {"clip_l": 768, "clip_g": 1280},
            {"clip_l", "clip_g"},
            ["t5"],
        ),
        ({"clip_l": ONE, "t5": torch.randn(2, 4096)}, {"clip_l": 768, "t5xxl": 4096}, {"clip_l", "t5xxl"}, []),
    ],
    ids=["SD 1", "SD 1, emb_params", "SDXL", "SD 3 on SDXL", "a model with T5"],
)
@pytest.mark.parametrize("bundled", [False, True], ids=["file", "bundle"])
def test_onetrainers_embeddings_give_what_the_model_can_use(tmp_path, tensors, widths, used, unused, bundled):
    """Its `…_out` are added behind the text encoder, which no other program does."""
    if bundled and "emb_params" in tensors:
        return  # bundles name encoders
    path = tmp_path / "x.safetensors"
    save_file({f"bundle_emb.x.{key}" if bundled else key: value for key, value in tensors.items()}, path)
    assert describe(path)["kind"] == ("bundle" if bundled else "embedding")
    found = load_concept(path, widths=widths)
    assert set(found.vectors) == used
    assert sorted(found.provenance.get(LEFT_OUT, [])) == unused
    assert torch.equal(found.vectors["clip_l"], ONE)


def test_vectors_that_no_text_encoder_reads_are_no_word(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"clip_l_out": ONE, "clip_g_out": TWO}, path)
    with pytest.raises(ConceptFileError, match="nothing that this model can use, only clip_g_out and clip_l_out"):
        load_concept(path)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [768, 1024])
def test_kohyas_xti_files_come_and_go(tmp_path, rows, width):
    """The 16 cross-attentions of SD 1 and 2 in forward order, one tensor each."""
    encoder = {768: "clip_l", 1024: "clip_h"}[width]
    learned = concept({encoder: width}, rows=rows, layers=16)
    path = save_xti(learned, tmp_path)
    stored = load_file(path)
    assert list(stored) == list(XTI_LAYERS), "Kohya's reader takes them in the file's order"
    assert all(torch.equal(stored[key], learned.layer_vectors[encoder][i]) for i, key in enumerate(XTI_LAYERS))
    save_file(stored, tmp_path / "theirs.safetensors")
    for file in (path, tmp_path / "theirs.safetensors"):
        assert kind_of(file) == "XTI"
        assert describe(file)["layer_vectors"] == {"every layer": [16, rows, width]}
        found = load_concept(file, widths={encoder: width})
        assert torch.equal(found.layer_vectors[encoder], learned.layer_vectors[encoder])
        assert torch.allclose(found.vectors[encoder], learned.layer_vectors[encoder].mean(0))
    assert load_concept(path).class_word == "puppy"
    assert json.loads(json.dumps(describe(path)))["class_word"] == "puppy"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layers": 7}, "hold the 16 layers of SD 1 and 2; dog has 7 of clip_l"),
        ({"layers": 0}, "dog has none"),
        ({"layers": 16, "widths": {"clip_l": 8, "clip_g": 8}}, "dog has 16 of clip_l and 16 of clip_g"),
    ],
    ids=["tiny", "no layers", "SDXL"],
)
def test_what_an_xti_file_cannot_hold_is_not_written(tmp_path, other, message):
    with pytest.raises(ConceptFileError, match=re.escape(message)):
        save_xti(concept(**{"widths": {"clip_l": 8}, **other}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_xti_layers_of_different_shapes_are_refused(tmp_path):
    save_file({key: torch.ones(1 + (key == "MID"), 768) for key in XTI_LAYERS}, tmp_path / "x.safetensors")
    with pytest.raises(ConceptFileError, match="vectors of several shapes"):
        load_concept(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["my_lora", "lora", "xlorax.v2", "LoRA"])
def test_no_bundle_looks_like_a_lora_of_diffusers(tmp_path, name):
    """It takes a file of keys that all hold "lora" for one, finds nothing in it, and only warns."""
    for parts in ({"layers": 0}, {"layers": 0, "lora": False}):
        path = save_bundle(replace(concept(**parts), name=name), tmp_path, if_exists="replace")
        assert not all("lora" in key for key in load_file(path))
        assert load_concept(path).name == name
