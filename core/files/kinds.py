"""What a file of tensors is, by their names first and their shapes second. Every reader of files asks here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from .errors import ConceptFileError

Kind = Literal["embedding", "bundle", "LoRA", "XTI"]

BUNDLE_PREFIX = "bundle_emb."
LAYER_PREFIX = "layer_vectors."
LATENTS = "training_latents"
"""The key of what a concept keeps of its training pictures, float16."""
EMB_PARAMS = "emb_params"
NUMBERED = re.compile(r"text_encoders_\d+")
"""Diffusers' scripts for SDXL number the text encoders."""
OUTPUT_ENDING = "_out"
"""OneTrainer's mark of vectors that are added behind a text encoder, which no other program does."""
XTI_LAYERS = (
    *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
    *(f"OUT{number:02}" for number in range(3, 12)),
)
"""Kohya's names of the cross-attentions of SD 1 and 2, in forward order."""

ENCODERS = frozenset(
    {
        *("clip_l", "clip_g", "clip_h", "t5", "t5xxl", "llama", "gemma2_2b", "mistral3_24b"),
        *("qwen25_7b", "qwen3_4b", "qwen3_8b", "pile_t5xl", "mt5xl", "chinese_roberta"),
    }
)
"""Names of text encoders that ComfyUI and OneTrainer give to the tensors of embedding files."""

# The ends of keys, by who writes them: kohya, diffusers of each age, PEFT; LyCORIS' LoHa, LoKr, OFT, BOFT and IA3;
# GLoRA; DoRA; norms; full differences.
CHANGE_OF_A_LAYER = re.compile(
    r"""(?:[._]lora[._](?:up|down|mid|A|B)(?:\.\w+)?(?:\.weight)?
    | [._]lora_linear_layer\.(?:up|down)\.weight
    | [._](?:hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_(?:blocks|diag)|on_input)
    | [._](?:a|b)[12]\.weight
    | [._](?:dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|alpha|scalar|rescale)
    | [._][wb]_norm
    | [._](?:diff(?:_b)?|set_weight|reshape_weight))$""",
    re.VERBOSE,
)
OF_A_LORA = re.compile(r"(?:lora_unet|lora_te\d?|lora_transformer|lycoris)_.*\.")
"""How the keys of kohya's and LyCORIS' files begin, whatever they end in. A word called so has no dot."""
OF_A_MODEL = (".weight", ".bias")
"""How the names of a model's own tensors end; no program calls a word so."""


class Shaped(Protocol):
    """A tensor, or its entry in a header."""

    @property
    def shape(self) -> Sequence[int]: ...


def kind_of_tensors(path: Path, tensors: Mapping[str, Shaped]) -> Kind:
    """The kind of a file with these tensors. Raises ConceptFileError that calls the file `path` where it is none."""
    if not tensors:
        raise ConceptFileError(f"{path.name} holds no tensor")
    if any(key.startswith(BUNDLE_PREFIX) for key in tensors):
        return "bundle"
    if has_lora(tensors):
        return "LoRA"
    if set(tensors) == set(XTI_LAYERS):
        return "XTI"
    some = next(iter(tensors))
    vectors = all(len(value.shape) in (1, 2) for value in tensors.values())
    nameless = len(tensors) == 1 and not some.endswith(OF_A_MODEL)
    if vectors and (nameless or any(names_an_encoder(key) for key in tensors)):
        return "embedding"
    shape = " x ".join(map(str, tensors[some].shape)) or "one number"
    raise ConceptFileError(
        f"{path.name} is no embedding, LoRA or bundle: it holds {len(tensors)} tensors such as {some[:80]!r} ({shape})"
    )


def is_lora_key(key: str) -> bool:
    """Whether a LoRA loader would look at this key: it names a change of a layer, of whatever kind."""
    if key.startswith((BUNDLE_PREFIX, LAYER_PREFIX)) or key == LATENTS:
        return False
    return OF_A_LORA.match(key) is not None or CHANGE_OF_A_LAYER.search(key) is not None


def has_lora(tensors: Mapping[str, object]) -> bool:
    """Whether any key is a LoRA's."""
    return any(is_lora_key(key) for key in tensors)


def names_an_encoder(key: str) -> bool:
    """Whether an embedding file gives vectors such a name."""
    name = key.removesuffix(OUTPUT_ENDING)
    return name in ENCODERS or name == EMB_PARAMS or NUMBERED.fullmatch(name) is not None


def stem_of(key: str) -> str:
    """The layer that a LoRA's key is about."""
    found = CHANGE_OF_A_LAYER.search(key)
    return key.split(".")[0] if found is None else key[: found.start()]
