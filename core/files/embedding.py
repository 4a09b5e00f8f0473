"""Embedding files: a few kilobytes that every Stable Diffusion program reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

from ..concept import Concept
from .atomic import IfExists
from .errors import ConceptFileError
from .metadata import Facts, read_facts, write_facts
from .reading import read_tensors
from .writing import narrowed, write_concept_file

Layout = Literal["encoders", "emb_params"]

ENCODER_OF_WIDTH: Mapping[int, str] = {128: "clip_l", 768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
FAMILY_OF_WIDTH: Mapping[int, str] = {
    128: "the bundled tiny model",
    768: "SD 1.x, and clip_l of SDXL",
    1024: "SD 2.x",
    1280: "clip_g of SDXL",
}
EMB_PARAMS = "emb_params"
OF_AN_ENCODER = re.compile(r"text_encoders_\d+")
"""Diffusers' scripts for SDXL number the text encoders."""


def save_embedding(
    concept: Concept,
    root: Path | str,
    name: str | None = None,
    *,
    layout: Layout = "encoders",
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
) -> Path:
    """Write the concept's vectors to `root/name.safetensors` (by default under its own name) and return the path.

    Layout "encoders" holds one tensor (n, d) per text encoder under its name and no other: programs that do not know
    a name take the first tensor they find. "emb_params" holds one tensor of that name, for programs that expect it.
    The file is written atomically and read back.

    Raises:
        ValueError: an unsafe name.
        ConceptFileError: the layout has no place for a second encoder, or float16 cannot hold a value.
        FileExistsError, OSError: as `atomic_write_verified`.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"the layout is one of {get_args(Layout)}, not {layout!r}")
    vectors = {encoder: narrowed(value, dtype, encoder) for encoder, value in concept.vectors.items()}
    only = None
    if layout == "emb_params":
        if len(vectors) != 1:
            raise ConceptFileError(
                f"an emb_params file holds one text encoder; {concept.name} has {' and '.join(sorted(vectors))}"
            )
        only, value = next(iter(vectors.items()))
        vectors = {EMB_PARAMS: value}
    return write_concept_file(vectors, write_facts(concept, "embedding", only), root, name or concept.name, if_exists)


def load_embedding(path: Path | str, *, widths: Mapping[str, int] | None = None) -> Concept:
    """Read an embedding file of this or another program; the vectors become float32.

    `widths` maps the text encoders of the model at hand to their widths. With it, a nameless tensor is given to the
    encoder of its width and every vector is checked against the model.

    Raises:
        ConceptFileError: the file is damaged, a pickle, not an embedding, or does not fit `widths`.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    concept = embedding_from_tensors(path, tensors, read_facts(path, metadata), widths)
    if widths is not None:
        check_widths(concept, widths)
    return concept


def embedding_from_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], facts: Facts, widths: Mapping[str, int] | None
) -> Concept:
    """The concept in an embedding file's tensors. Raises ConceptFileError as `load_embedding`."""
    if not tensors:
        raise ConceptFileError(f"{path.name} holds no tensor")
    known = set(ENCODER_OF_WIDTH.values()) | set(widths or ())
    if len(tensors) == 1 and not set(tensors) <= known:
        key, value = next(iter(tensors.items()))
        rows = as_vectors(path, key, value)
        tensors = {facts.encoder or encoder_of_width(path, rows.shape[1], widths): rows}
    elif all(OF_AN_ENCODER.fullmatch(key) for key in tensors):
        rows = [as_vectors(path, key, value) for key, value in tensors.items()]
        tensors = {encoder_of_width(path, value.shape[1], widths): value for value in rows}
        if len(tensors) < len(rows):
            raise ConceptFileError(f"{path.name} holds vectors of one width for several text encoders")
    elif not set(tensors) <= known:
        strange = sorted(set(tensors) - known)
        raise ConceptFileError(
            f"{path.name} is no embedding: it holds {len(strange)} other tensors such as {strange[0]!r}"
        )
    vectors = {encoder: as_vectors(path, encoder, value) for encoder, value in tensors.items()}
    try:
        return Concept(
            name=facts.name,
            class_word=facts.class_word,
            vectors=vectors,
            hard_token=facts.hard_token,
            provenance=facts.provenance,
        )
    except ValueError as error:
        raise ConceptFileError(f"{path.name}: {error}") from error


def check_widths(concept: Concept, widths: Mapping[str, int]) -> None:
    """Raise ConceptFileError unless the concept has vectors of the right width for exactly the model's text encoders.

    The message names both widths and which family of models has them.
    """
    model = ", ".join(f"{encoder} {_width(width)}" for encoder, width in widths.items())
    for encoder, value in concept.vectors.items():
        if widths.get(encoder) != value.shape[1]:
            raise ConceptFileError(
                f"{concept.name!r} was made for {encoder} {_width(value.shape[1])}, but the model has {model}"
            )
    missing = [encoder for encoder in widths if encoder not in concept.vectors]
    if missing:
        raise ConceptFileError(f"{concept.name!r} has no vectors for {' and '.join(missing)}; the model has {model}")


def encoder_of_width(path: Path, width: int, widths: Mapping[str, int] | None = None) -> str:
    """The text encoder whose input embeddings have this width: of the model if given, else of the known families."""
    candidates = [encoder for encoder, value in (widths or {}).items() if value == width]
    if len(candidates) == 1:
        return candidates[0]
    if widths:
        model = ", ".join(f"{encoder} {_width(value)}" for encoder, value in widths.items())
        raise ConceptFileError(f"{path.name} holds vectors {_width(width)}, but the model has {model}")
    if width not in ENCODER_OF_WIDTH:
        raise ConceptFileError(f"{path.name} holds vectors {_width(width)}; say which model they are for")
    return ENCODER_OF_WIDTH[width]


def as_vectors(path: Path, key: str, value: torch.Tensor) -> torch.Tensor:
    """(n, d) float32; a single vector may come as (d,)."""
    if not value.is_floating_point() or value.ndim not in (1, 2):
        raise ConceptFileError(
            f"{path.name}: {key!r} is no list of vectors but {str(value.dtype)[6:]} of shape {tuple(value.shape)}"
        )
    return value.reshape(-1, value.shape[-1]).float()


def _width(width: int) -> str:
    return f"{width} wide ({FAMILY_OF_WIDTH.get(width, 'no known family of models')})"
