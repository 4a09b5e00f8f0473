"""Embedding files: a few kilobytes that every Stable Diffusion program reads (docs/interop.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..concept import Concept
from .atomic import IfExists
from .errors import ConceptFileError
from .kinds import EMB_PARAMS, ENCODERS, NUMBERED, OUTPUT_ENDING, XTI_LAYERS, kind_of_tensors
from .metadata import Facts, read_facts, write_facts
from .reading import read_tensors
from .writing import narrowed, write_concept_file

Layout = Literal["auto", "encoders", "emb_params"]

ENCODER_OF_WIDTH: Mapping[int, str] = {128: "clip_l", 768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
FAMILY_OF_WIDTH: Mapping[int, str] = {
    128: "the bundled tiny model",
    768: "SD 1.x, and clip_l of SDXL",
    1024: "SD 2.x",
    1280: "clip_g of SDXL",
    2048: "AuraFlow and HunyuanDiT",
    2304: "Lumina 2",
    2560: "Z-Image",
    3584: "Qwen-Image",
    4096: "Flux.1, SD3, Chroma and PixArt",
    5120: "Flux.2",
}
OTHER_NAMES: Mapping[str, str] = {"t5": "t5xxl"}
"""OneTrainer's name of a text encoder -> ComfyUI's."""
OTHER_ENCODERS = ENCODERS - set(ENCODER_OF_WIDTH.values())
LEFT_OUT = "left out"
"""The key of a concept's provenance that names what its file held and no model at hand can use."""


def save_embedding(
    concept: Concept,
    root: Path | str,
    name: str | None = None,
    *,
    layout: Layout = "auto",
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
) -> Path:
    """Write the concept's vectors to `root/name.safetensors` (by default under its own name) and return the path.

    Layout "emb_params" holds one tensor (n, d) of that name; "encoders" one per text encoder under the encoder's name
    and no other, since programs that do not know a name take the first tensor they find. "auto" is the first for a word
    of one CLIP text encoder, which every program of docs/interop.md reads, and the second for several and for others.
    The file is written atomically and read back.

    Raises:
        ValueError: an unsafe name.
        ConceptFileError: the layout has no place for a second encoder, or float16 cannot hold a value.
        FileExistsError, OSError: as `atomic_write_verified`.
    """
    layout = layout_of(concept, layout)
    vectors = {encoder: narrowed(value, dtype, encoder) for encoder, value in concept.vectors.items()}
    only = None
    if layout == "emb_params":
        only, value = next(iter(vectors.items()))
        vectors = {EMB_PARAMS: value}
    return write_concept_file(vectors, write_facts(concept, "embedding", only), root, name or concept.name, if_exists)


def layout_of(concept: Concept, layout: Layout = "auto") -> Layout:
    """The layout that "auto" means for this concept, or the one that was chosen.

    Raises ValueError for another one, ConceptFileError where the concept does not fit into it.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"the layout is one of {get_args(Layout)}, not {layout!r}")
    if layout == "auto":
        of_clip = set(concept.vectors) <= set(ENCODER_OF_WIDTH.values())
        return "emb_params" if len(concept.vectors) == 1 and of_clip else "encoders"
    if layout == "emb_params" and len(concept.vectors) != 1:
        raise ConceptFileError(
            f"an emb_params file holds one text encoder; {concept.name} has {' and '.join(sorted(concept.vectors))}"
        )
    return layout


def save_xti(
    concept: Concept,
    root: Path | str,
    name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
) -> Path:
    """Write the vectors of each layer as Kohya's XTI file (16 tensors IN01 ... OUT11) and return the path.

    Raises:
        ConceptFileError: the concept has no vectors for each layer, or not 16 layers of one text encoder.
        Else as `save_embedding`.
    """
    layers = concept.layer_vectors or {}
    if len(layers) != 1 or any(len(value) != len(XTI_LAYERS) for value in layers.values()):
        had = " and ".join(f"{len(value)} of {encoder}" for encoder, value in layers.items()) or "none"
        raise ConceptFileError(
            f"Kohya's XTI files hold the {len(XTI_LAYERS)} layers of SD 1 and 2; {concept.name} has {had}"
        )
    ((encoder, value),) = layers.items()
    tensors = {key: narrowed(rows, dtype, key) for key, rows in zip(XTI_LAYERS, value, strict=True)}
    return write_concept_file(tensors, write_facts(concept, "XTI", encoder), root, name or concept.name, if_exists)


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
    """The concept in the tensors of an embedding or XTI file. Raises ConceptFileError as `load_embedding`."""
    kind = kind_of_tensors(path, tensors)
    if kind == "XTI":
        return _xti_from_tensors(path, tensors, facts, widths)
    if kind != "embedding":
        raise ConceptFileError(f"{path.name} is no embedding but a {kind}")
    return concept_of_vectors(path, tensors, facts, widths)


def concept_of_vectors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    facts: Facts,
    widths: Mapping[str, int] | None,
    *,
    named: bool = False,
) -> Concept:
    """The concept whose vectors these are; `named` where every key is known to be a text encoder's.

    Raises ConceptFileError as `load_embedding`.
    """
    given = {key: as_vectors(path, key, value) for key, value in tensors.items()}
    usable, unused = _usable(path, given, widths)
    vectors = usable if named else _by_encoder(path, usable, facts, widths)
    provenance = {**facts.provenance, LEFT_OUT: unused} if unused else facts.provenance
    return _concept(path, facts, vectors, provenance)


def _concept(
    path: Path, facts: Facts, vectors: Mapping[str, torch.Tensor], provenance: Mapping[str, Any], **parts: Any
) -> Concept:
    try:
        known = {"name": facts.name, "class_word": facts.class_word, "hard_token": facts.hard_token}
        return Concept(**known, vectors=vectors, provenance=provenance, **parts)
    except ValueError as error:
        raise ConceptFileError(f"{path.name}: {error}") from error


def _usable(
    path: Path, tensors: Mapping[str, torch.Tensor], widths: Mapping[str, int] | None
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What a model of these `widths` can use of OneTrainer's tensors, under ComfyUI's names, and the names of the rest.

    Vectors that are added behind a text encoder are never of use; those of a text encoder other than CLIP are only to a
    model that has it.
    """
    used, unused = {}, []
    for key, value in tensors.items():
        name = OTHER_NAMES.get(key, key)
        output = key.endswith(OUTPUT_ENDING) and len(tensors) > 1
        if output or (name in OTHER_ENCODERS and widths is not None and name not in widths):
            unused.append(key)
        else:
            used[name] = value
    if not used:
        raise ConceptFileError(f"{path.name} holds nothing that this model can use, only {' and '.join(unused)}")
    return used, unused


def _by_encoder(
    path: Path, tensors: Mapping[str, torch.Tensor], facts: Facts, widths: Mapping[str, int] | None
) -> dict[str, torch.Tensor]:
    """Text encoder -> its vectors, where the file names them, numbers them, or holds a single tensor."""
    known = ENCODERS | set(ENCODER_OF_WIDTH.values()) | set(widths or ())
    if len(tensors) == 1 and not set(tensors) <= known:
        ((_, rows),) = tensors.items()
        return {facts.encoder or encoder_of_width(path, rows.shape[1], widths): rows}
    if all(NUMBERED.fullmatch(key) for key in tensors):
        found = {encoder_of_width(path, value.shape[1], widths): value for value in tensors.values()}
        if len(found) < len(tensors):
            raise ConceptFileError(f"{path.name} holds vectors of one width for several text encoders")
        return found
    strange = sorted(set(tensors) - known)
    if strange:
        raise ConceptFileError(
            f"{path.name} is no embedding: it holds {len(strange)} other tensors such as {strange[0][:80]!r}"
        )
    return dict(tensors)


def _xti_from_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], facts: Facts, widths: Mapping[str, int] | None
) -> Concept:
    """A word with vectors for each of 16 layers; the word itself, for all that wants one, is their mean."""
    rows = [as_vectors(path, key, tensors[key]) for key in XTI_LAYERS]
    if len({value.shape for value in rows}) != 1:
        raise ConceptFileError(f"{path.name} holds vectors of several shapes; the 16 of an XTI file have one")
    encoder = facts.encoder or encoder_of_width(path, rows[0].shape[1], widths)
    layers = torch.stack(rows)
    return _concept(path, facts, {encoder: layers.mean(0)}, facts.provenance, layer_vectors={encoder: layers})


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
