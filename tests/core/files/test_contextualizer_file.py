"""Contextualizer files: what is written is what is read, and nothing else is mistaken for one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from contextual_inversion.core.files.contextualizer import load_contextualizer, save_contextualizer
from contextual_inversion.core.files.errors import ConceptFileError
from contextual_inversion.core.networks.contextualizer import (
    PRESETS,
    Contextualizer,
    EncoderIdentity,
    initialise,
)

TABLE = torch.randn(50, 32, generator=torch.Generator().manual_seed(9))


def encoder_like(**changes):
    facts = {"name": "clip_l", "fingerprint": "0123456789abcdef", "width": 32, "max_length": 12}
    facts |= {"output": "layer 12, normed", **changes}
    return SimpleNamespace(**facts, table=lambda: TABLE)


def contextualizer(token_ids=None):
    provenance = {"mode": "non_padding", "steps": 7, "held_out": {"accuracy": 0.5}}
    psi = Contextualizer(EncoderIdentity.of(encoder_like()), PRESETS["tiny"], token_ids, provenance)
    return initialise(psi, TABLE, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("token_ids", [None, [4, 9, 30]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_everything_comes_back(tmp_path, token_ids, dtype):
    psi = contextualizer(token_ids)
    read = load_contextualizer(save_contextualizer(psi, tmp_path, "mine", dtype=dtype), encoder_like())
    assert (read.encoder, read.shape, read.sparse, read.provenance) == (
        psi.encoder,
        psi.shape,
        psi.sparse,
        psi.provenance,
    )
    assert torch.equal(read.token_ids, psi.token_ids)
    assert torch.equal(read.rows, psi.rows)
    for name, value in psi.state_dict().items():
        assert torch.equal(read.state_dict()[name], value.to(dtype).float())
    assert not any(value.requires_grad for value in read.parameters())


def test_the_file_says_what_it_is_without_being_opened_by_us(tmp_path):
    from safetensors import safe_open

    with safe_open(save_contextualizer(contextualizer([1, 2]), tmp_path, "mine"), "pt") as file:
        facts = json.loads(file.metadata()["contextual_inversion"])
    assert facts["kind"] == "contextualizer"
    assert facts["encoder"]["fingerprint"] == "0123456789abcdef"
    assert facts["encoder"]["vocabulary"] == 50
    assert facts["provenance"]["steps"] == 7
    assert facts["classes"] == 3


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "fedcba9876543210"},
        {"width": 64},
        {"name": "clip_g"},
        {"max_length": 20},
        {"output": "layer 11, raw"},  # SDXL's clip_l has the words of SD 1's
    ],
)
def test_another_encoders_file_is_refused_with_both_names(tmp_path, other):
    path = save_contextualizer(contextualizer(), tmp_path, "mine")
    with pytest.raises(ConceptFileError) as caught:
        load_contextualizer(path, encoder_like(**other))
    here = EncoderIdentity.of(encoder_like(**other))
    assert str(here) in str(caught.value)
    assert str(EncoderIdentity.of(encoder_like())) in str(caught.value)


def test_a_file_that_does_not_say_which_layer_it_read_is_taken(tmp_path):
    unknown = EncoderIdentity.of(encoder_like(output=""))
    read = load_contextualizer(
        save_contextualizer(Contextualizer(unknown, PRESETS["tiny"], [1, 2]), tmp_path, "old"), encoder_like()
    )
    assert read.encoder == unknown


def test_files_that_are_something_else_or_damaged_are_refused(tmp_path):
    whole = save_contextualizer(contextualizer(), tmp_path, "mine")
    tensors = load_file(whole)
    save_file({"clip_l": torch.zeros(1, 32)}, tmp_path / "embedding.safetensors")
    with pytest.raises(ConceptFileError, match="no contextualizer"):
        load_contextualizer(tmp_path / "embedding.safetensors")
    with pytest.raises(ConceptFileError, match="cannot be read"):
        load_contextualizer(tmp_path / "absent.safetensors")

    facts = {
        "version": 1,
        "kind": "contextualizer",
        "encoder": {"name": "clip_l", "fingerprint": "0", "width": 32, "max_length": 12, "vocabulary": 50},
        "shape": {"attentions": 2, "heads": 4, "hidden": 2},
        "provenance": {},
    }
    wrong = [
        (tensors, {**facts, "version": 2}, "version 2"),
        (tensors, {**facts, "encoder": {**facts["encoder"], "width": 64}}, "damaged"),
        (tensors, {**facts, "shape": {"attentions": 0, "heads": 4, "hidden": 2}}, "damaged"),
        (tensors, {key: value for key, value in facts.items() if key != "encoder"}, "damaged"),
        ({name: value for name, value in tensors.items() if name != "mask"}, facts, "damaged"),
        ({**tensors, "token_ids": torch.tensor([1, 1], dtype=torch.int32)}, facts, "damaged"),
    ]
    for index, (content, metadata, message) in enumerate(wrong):
        path = tmp_path / f"wrong{index}.safetensors"
        save_file(content, path, {"contextual_inversion": json.dumps(metadata)})
        with pytest.raises(ConceptFileError, match=message):
            load_contextualizer(path)
