"""The files that another program wants of a concept, and the lines to type there."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..concept import Concept
from .atomic import IfExists
from .embedding import save_embedding, save_xti
from .errors import ConceptFileError
from .metadata import write_facts
from .names import inside, safe_name
from .portable import portable_lora
from .programs import MISREAD, PROGRAMS, ProgramKey, typed
from .typed_names import advice
from .writing import ENDING, narrowed, write_concept_file


@dataclass(frozen=True)
class Exported:
    """Paths by kind ("word", "LoRA", "XTI"), the lines to type, and what could not be held, as lines for people."""

    files: dict[str, Path]
    lines: list[str]
    left_out: list[str]


def export(
    concept: Concept,
    program: ProgramKey,
    root: Path | str,
    name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
    pieces: Container[str] | None = None,
) -> Exported:
    """Write what `program` reads of a concept to `root`: `name.safetensors`, `name_lora…`, `name_xti…`.

    A part is written whole or not at all: what a program would read by half is left out, and said. `pieces` is CLIP's
    vocabulary, for what is said of the name.

    Raises:
        ValueError: an unknown program, or an unsafe name.
        ConceptFileError, FileExistsError, OSError: as `save_embedding`.
    """
    if program not in PROGRAMS:
        raise ValueError(f"there is no program {program!r} here but {', '.join(PROGRAMS)}")
    name = safe_name(name or concept.name.rpartition("/")[2])
    if dtype != torch.float32 and not PROGRAMS[program].float16:
        raise ConceptFileError(f"{PROGRAMS[program].title} cannot be given float16: {MISREAD}")
    change, left_out = _change(concept, program)
    change = change and {key: narrowed(value, dtype, key) for key, value in change.items()}
    if if_exists == "error":
        _require_free(root, [name, *([f"{name}_lora"] if change else []), f"{name}_xti"])
    left_out += _layers_lost(concept, program)
    concept = concept.renamed(name)
    how = {"dtype": dtype, "if_exists": if_exists}
    files = {"word": save_embedding(concept, root, name, **how)}
    if change is not None:
        files["LoRA"] = save_lora(concept, change, root, f"{name}_lora", **how)
    if program == "kohya" and _is_xti(concept):
        files["XTI"] = save_xti(concept, root, f"{name}_xti", **how)
    lora = files["LoRA"].name if "LoRA" in files else None
    lines = typed(program, name, files["word"].name, encoders=len(concept.vectors), lora=lora)
    if "XTI" in files:
        xti = files["XTI"]
        lines.append(f"or, for its vectors of each layer: gen_img_diffusers.py --XTI_embeddings {xti.name}")
        lines.append(f"prompt: {xti.stem}")
    return Exported(files, [*lines, *advice(concept.name, concept.length, pieces, CALLED[program])], left_out)


def save_lora(
    concept: Concept,
    lora: dict[str, torch.Tensor],
    root: Path | str,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
) -> Path:
    """Write `lora`, the change of the model that goes with the concept, to a file of its own; its path."""
    tensors = {key: narrowed(value, dtype, key) for key, value in lora.items()}
    return write_concept_file(tensors, write_facts(concept, "LoRA"), root, name, if_exists)


CALLED: Mapping[ProgramKey, tuple[str, ...]] = {
    "comfyui": (),
    "a1111": (),
    "invokeai": ("InvokeAI",),
    "sdkit": ("sdkit",),
    "diffusers": ("diffusers", "compel"),
    "kohya": ("Kohya's scripts",),
    "stable-diffusion-cpp": ("stable-diffusion.cpp",),
}
"""What `typed_names` calls those who take a name apart."""


def _require_free(root: Path | str, names: list[str]) -> None:
    """Raises FileExistsError where one of them is taken: before anything is written."""
    for path in (inside(root, name, ENDING) for name in names):
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another name or folder, or allow it to be replaced")


def _change(concept: Concept, program: ProgramKey) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
    if not concept.lora:
        return None, []
    if PROGRAMS[program].own_form:
        return dict(concept.lora), []
    try:
        return portable_lora(concept.lora), []
    except ConceptFileError as error:
        return None, [f"the change of the model: {error}"]


def _is_xti(concept: Concept) -> bool:
    return {len(value) for value in (concept.layer_vectors or {}).values()} == {16} and len(concept.vectors) == 1


def _layers_lost(concept: Concept, program: ProgramKey) -> list[str]:
    if not concept.layer_vectors or (program == "kohya" and _is_xti(concept)):
        return []
    own = "; Load Concept and Apply Concept of this pack use them" if program == "comfyui" else ""
    return [f"the vectors of each layer: {PROGRAMS[program].title} has one word for all, and gets their mean{own}"]
