"""What is saved comes back bit for bit, with everything that belongs to it, and nothing wrong is read as right."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import (
    ConceptFileError,
    check_widths,
    kind_of,
    load_bundle,
    load_concept,
    load_embedding,
    save_bundle,
    save_embedding,
)
from contextual_inversion.core.files.contents import describe_lora

from .conftest import WIDTHS, concept, raw_file

DTYPES = [torch.float32, torch.float16]
numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
plain_data = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
laws = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def same_facts(a: Concept, b: Concept) -> bool:
    return (a.name, a.class_word, a.hard_token, a.provenance) == (b.name, b.class_word, b.hard_token, b.provenance)


def same_tensors(a, b, dtype=torch.float32) -> bool:
    """Bit for bit, after `a` went through a file of this type."""
    if a is None or b is None:
        return a is b
    return set(a) == set(b) and all(torch.equal(a[key].to(dtype).to(b[key].dtype), b[key]) for key in a)


@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_an_embedding_comes_back(tmp_path, family, dtype, rows):
    learned = concept(WIDTHS[family], rows=rows)
    path = save_embedding(learned, tmp_path, dtype=dtype)
    assert path == tmp_path / "dog.safetensors"
    stored = load_file(path)
    shapes = {encoder: (rows, width) for encoder, width in WIDTHS[family].items()}
    # One text encoder is stored under the name that every program reads (docs/interop.md).
    expected = shapes if family == "SDXL" else {"emb_params": next(iter(shapes.values()))}
    assert {key: tuple(value.shape) for key, value in stored.items()} == expected
    assert {value.dtype for value in stored.values()} == {dtype}
    assert kind_of(path) == "embedding"
    for back in (load_embedding(path), load_embedding(path, widths=WIDTHS[family]), load_concept(path)):
        assert same_tensors(learned.vectors, back.vectors, dtype)
        assert {value.dtype for value in back.vectors.values()} == {torch.float32}
        assert same_facts(learned, back)


@pytest.mark.parametrize("family", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", [{}, {"lora": False}, {"layers": 0}, {"lora": False, "layers": 0}], ids=str)
def test_a_bundle_comes_back_whole(tmp_path, family, dtype, parts):
    learned = concept(WIDTHS[family], name="my.dog", **parts)
    path = save_bundle(learned, tmp_path, "sub/renamed.v2", dtype=dtype)
    assert path == tmp_path / "sub" / "renamed.v2.safetensors"
    assert kind_of(path) == "bundle"
    for back in (load_bundle(path), load_concept(path, widths=WIDTHS[family])):
        assert same_facts(learned, back)
        assert same_tensors(learned.vectors, back.vectors, dtype)
        assert same_tensors(learned.layer_vectors, back.layer_vectors, dtype)
        assert same_tensors(learned.lora, back.lora, dtype)
    again = load_bundle(save_bundle(load_bundle(path), tmp_path, "again", dtype=dtype))
    assert same_tensors(load_bundle(path).lora, again.lora)
    keys = [key for key in load_file(path) if key.startswith("bundle_emb.")]
    assert all(key.count(".") == 2 for key in keys), "readers split these keys at dots"


@laws
@given(
    provenance=st.dictionaries(st.text(), plain_data, max_size=4), word=st.text(), hard=st.one_of(st.none(), st.text())
)
def test_any_plain_provenance_comes_back(tmp_path, provenance, word, hard):
    learned = replace(concept({"clip_l": 4}), class_word=word, hard_token=hard, provenance=provenance)
    for save in (save_embedding, save_bundle):
        assert same_facts(learned, load_concept(save(learned, tmp_path, "x", if_exists="replace")))


def test_provenance_is_never_a_reason_not_to_save(tmp_path):
    odd = {"loss": float("nan"), "best": float("inf"), "path": tmp_path, "pair": (1, 2), "dtype": torch.float16, 3: "x"}
    path = save_embedding(replace(concept(), provenance=odd), tmp_path)
    expected = {"loss": None, "best": None, "path": str(tmp_path), "pair": [1, 2], "dtype": "torch.float16", "3": "x"}
    assert load_embedding(path).provenance == expected
    with safe_open(path, "pt") as file:
        json.loads(file.metadata()["contextual_inversion"], parse_constant=pytest.fail)


@pytest.mark.parametrize("family", ["SD 1.x", "SD 2.x", "bundled"])
def test_the_emb_params_twin_holds_one_tensor_and_knows_its_encoder(tmp_path, family):
    learned = concept(WIDTHS[family])
    path = save_embedding(learned, tmp_path, layout="emb_params")
    assert list(load_file(path)) == ["emb_params"]
    back = load_embedding(path)
    assert same_tensors(learned.vectors, back.vectors)
    assert same_facts(learned, back)


def test_emb_params_has_no_place_for_two_encoders(tmp_path):
    with pytest.raises(ConceptFileError, match="holds one text encoder"):
        save_embedding(concept(WIDTHS["SDXL"]), tmp_path, layout="emb_params")
    with pytest.raises(ValueError, match="layout"):
        save_embedding(concept(), tmp_path, layout="pickle")
    with pytest.raises(ValueError, match="float32 or float16"):
        save_embedding(concept(), tmp_path, dtype=torch.float64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("width", "encoder"), [(768, "clip_l"), (1024, "clip_h"), (1280, "clip_g"), (128, "clip_l")])
@pytest.mark.parametrize("shape", [(3,), (1,), ()], ids=str)
def test_a_nameless_tensor_goes_to_the_encoder_of_its_width(tmp_path, width, encoder, shape):
    value = torch.randn(*shape, width)
    save_file({"<my-word>": value}, tmp_path / "learned.safetensors")
    back = load_concept(tmp_path / "learned.safetensors")
    assert back.name == "learned"
    assert torch.equal(back.vectors[encoder], value.reshape(-1, width))
    widths = {"first": width + 1, "second": width}
    assert list(load_embedding(tmp_path / "learned.safetensors", widths={"second": width}).vectors) == ["second"]
    with pytest.raises(ConceptFileError, match="no vectors for first"):
        load_embedding(tmp_path / "learned.safetensors", widths=widths)


def test_a_width_that_no_model_has_is_named(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.randn(1, 700)}, path)
    with pytest.raises(ConceptFileError, match=r"700 wide .*say which model"):
        load_embedding(path)
    with pytest.raises(ConceptFileError, match=r"700 wide .*clip_l 768 wide \(SD 1\.x"):
        load_embedding(path, widths={"clip_l": 768})


@pytest.mark.parametrize("ours", WIDTHS)
@pytest.mark.parametrize("model", WIDTHS)
@pytest.mark.parametrize("save", [save_embedding, save_bundle])
def test_a_concept_fits_its_own_family_only(tmp_path, ours, model, save):
    learned = concept(WIDTHS[ours])
    path = save(learned, tmp_path)
    if ours == model:
        check_widths(learned, WIDTHS[model])
        assert load_concept(path, widths=WIDTHS[model]).vectors.keys() == WIDTHS[ours].keys()
        return
    for call in (lambda: check_widths(learned, WIDTHS[model]), lambda: load_concept(path, widths=WIDTHS[model])):
        with pytest.raises(ConceptFileError) as error:
            call()
        for width in WIDTHS[model].values():
            assert f"{width} wide (" in str(error.value)
        assert any(f"{width} wide (" in str(error.value) for width in WIDTHS[ours].values())


def test_values_that_the_type_cannot_hold_are_not_saved(tmp_path):
    huge = {"clip_l": torch.full((1, 4), 1e6)}
    down = "lora_unet_x.lora_down.weight"
    for learned in (
        Concept("dog", "dog", huge),
        Concept("dog", "dog", {"clip_l": torch.ones(1, 4)}, lora={down: torch.full((1, 4), 1e6)}),
    ):
        with pytest.raises(ConceptFileError, match=r"not finite in float16.*float32"):
            save_bundle(learned, tmp_path, dtype=torch.float16)
    broken = Concept("dog", "dog", {"clip_l": torch.ones(1, 4)}, lora={down: torch.full((1, 4), float("nan"))})
    with pytest.raises(ConceptFileError, match="not finite"):
        save_bundle(broken, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_layer_is_named_once_however_its_name_is_written():
    names = [
        "lora_te_x_fc1",
        "lora_unet_x",
        "text_encoders.clip_l.transformer.text_model.final_layer_norm",
        "unet.x.to_k",
    ]
    endings = [(".diff", ".diff_b"), (".lora_down.weight", ".lora_up.weight", ".alpha"), (".diff", ".diff_b")]
    endings.append((".lora_A.weight", ".lora_B.weight", ".alpha"))
    lora = {name + ending: torch.ones(2, 2) for name, own in zip(names, endings, strict=True) for ending in own}
    assert describe_lora(lora)["layers"] == names


def test_a_lora_key_that_no_loader_reads_is_refused(tmp_path):
    with pytest.raises(ConceptFileError, match="no loader reads"):
        save_bundle(replace(concept(), lora={"my_weights": torch.ones(1)}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_saving_changes_nothing_that_came_in_and_overwrites_nothing(tmp_path):
    learned = concept()
    kept = {key: value.clone() for key, value in {**learned.vectors, **learned.lora}.items()}
    first = save_embedding(learned, tmp_path).read_bytes()
    with pytest.raises(FileExistsError):
        save_embedding(concept(seed=1), tmp_path)
    assert (tmp_path / "dog.safetensors").read_bytes() == first
    assert save_embedding(learned, tmp_path, if_exists="number").read_bytes() == first
    assert same_tensors(kept, {**learned.vectors, **learned.lora})


@pytest.mark.parametrize("name", ["../x", "/x", "", "con", "a b", "x" * 300])
@pytest.mark.parametrize("save", [save_embedding, save_bundle])
def test_hostile_names_write_nothing(tmp_path, name, save):
    for learned, given_name in ((concept(), name or "\0"), (concept(name=name), None)):
        with pytest.raises(ValueError, match="name"):
            save(learned, tmp_path / "root", given_name)
    assert not list(tmp_path.iterdir())


def test_numbered_text_encoders_are_told_by_their_widths(tmp_path):
    """As diffusers' scripts write SDXL's."""
    path = tmp_path / "xl.safetensors"
    one, two = torch.randn(2, 768), torch.randn(2, 1280)
    save_file({"text_encoders_0": one, "text_encoders_1": two}, path)
    found = load_concept(path, widths={"clip_l": 768, "clip_g": 1280})
    assert same_tensors(found.vectors, {"clip_l": one, "clip_g": two})
    save_file({"text_encoders_0": one, "text_encoders_1": one.clone()}, path)
    with pytest.raises(ConceptFileError, match="one width"):
        load_concept(path)


def test_a_file_with_several_embeddings_asks_which(tmp_path):
    path = tmp_path / "two.safetensors"
    one, two = torch.randn(1, 768), torch.randn(2, 768)
    save_file({"bundle_emb.one.clip_l": one, "bundle_emb.two.string_to_param.*": two}, path)
    with pytest.raises(ConceptFileError, match="choose one: one, two"):
        load_concept(path)
    with pytest.raises(ConceptFileError, match="bundles no 'three' but one, two"):
        load_concept(path, embedding="three")
    chosen = load_concept(path, embedding="two")
    assert (chosen.name, list(chosen.vectors)) == ("two", ["clip_l"])
    assert torch.equal(chosen.vectors["clip_l"], two)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_x.lora_down.weight": torch.ones(1, 2)}, "a LoRA without a word"),
        ({"clip_l": torch.ones(1, 1, 768)}, "no embedding, LoRA or bundle"),
        ({"clip_l": torch.ones(1, 768, dtype=torch.int32)}, "no list of vectors"),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}, "same number of vectors"),
        ({"clip_l": torch.ones(1, 768), "aa_meta": torch.ones(3)}, "1 other tensors such as 'aa_meta'"),
        ({f"model.{index}": torch.ones(2, 2) for index in range(9)}, "it holds 9 tensors"),
        ({"bundle_emb.x.clip_l": torch.ones(1, 4), "model.weight": torch.ones(1)}, "neither embedding nor LoRA"),
        ({"bundle_emb.clip_l": torch.ones(1, 4)}, "names no embedding"),
        ({"bundle_emb.x.clip_l": torch.ones(1, 4), "layer_vectors.clip_l": torch.ones(3, 2, 4)}, "does not belong"),
        ({"bundle_emb.x.clip_l": torch.ones(1, 4), "training_latents": torch.ones(4, 8, 8)}, "no latents of pictures"),
        ({"bundle_emb.x.clip_l": torch.ones(1, 4), "layer_vectors.clip_g": torch.ones(3, 1, 4)}, "does not belong"),
        ({"bundle_emb.x.string_to_param.*": torch.tensor(1.0)}, "0 wide"),
        ({}, "holds no tensor"),
    ],
)
def test_what_is_no_concept_is_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ConceptFileError, match=message):
        load_concept(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "damaged provenance"),
        ("[" * 100_000, "damaged provenance"),
        ("[]", "no table"),
        ("{}", "names no version"),
        ('{"version": true}', "names no version"),
        ('{"version": 99}', "version 99.*update"),
        ('{"version": 1, "name": 3}', "not text"),
        ('{"version": 1, "provenance": []}', "not text"),
    ],
)
def test_damaged_provenance_is_found(tmp_path, facts, message):
    entry = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    header = {"__metadata__": {"contextual_inversion": facts}, "clip_l": entry}
    (tmp_path / "x.safetensors").write_bytes(raw_file(header, struct.pack("<2f", 1.0, 2.0)))
    with pytest.raises(ConceptFileError, match=message):
        load_concept(tmp_path / "x.safetensors")
