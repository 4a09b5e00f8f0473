"""The protocol's pictures drawn with a model and a learned word: 8 a prompt, resumable picture by picture."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...concept import PLACEHOLDER, Concept
from ...files.atomic import atomic_write_verified
from ...models.lora import from_lora
from ...models.low_rank import apply_deltas
from ...models.protocol import ImageSize, TextToImageModel, fingerprint
from ...models.sampling import sample
from ...models.text import encode_prompts
from ...models.words import layer_vectors_of
from ..world.world_evaluation import as_bytes
from .protocol import Cell, ProtocolError

RECORD = "generation.json"
SEEDS_A_PROMPT = 1000
"""So that a prompt's pictures stay the same when their number changes."""


@dataclass(frozen=True)
class Generation:
    """How pictures are drawn. The defaults are METHODS.md 2.7's: 8 a prompt, 50 steps, guidance 7.5, and noise added at
    every step as DDPM does (`eta` 1; 0 is DDIM). `class_word`: write "<word> class" as the MLM paper does, or the word
    alone as CoRe does. `size` is the side in pixels."""

    pictures: int = 8
    steps: int = 50
    guidance: float = 7.5
    eta: float = 1.0
    size: int = 512
    class_word: bool = False
    seed: int = 0
    batch: int = 4


def generate(
    model: TextToImageModel,
    concepts: Mapping[str, Concept],
    cells: Sequence[Cell],
    folder: Path,
    settings: Generation,
) -> Iterator[Path]:
    """Draw what is missing of every cell into `folder`/SUBJECT/PP/NN.png and yield each path, old ones too.

    A concept's LoRA and its vectors for every layer (XTI) are applied where it has them.

    Picture i of a prompt has a seed of its own and depends on nothing else.

    Raises ProtocolError where a subject has no concept, or its folder holds pictures that were drawn otherwise, and
    ValueError for a size that does not fit, or a concept of another kind of model.
    """
    _check_size(model, settings.size)
    subjects = dict.fromkeys(cell.subject.name for cell in cells)
    without = [name for name in subjects if name not in concepts]
    if without:
        raise ProtocolError(f"no concept for {', '.join(without)}; a file is looked for under each subject's name")
    for name in subjects:
        prompts = [cell.prompt.template for cell in cells if cell.subject.name == name]
        _record(folder / name / RECORD, {"prompts": prompts, **_facts(model, concepts[name], settings)})
    for cell in cells:
        yield from _draw_cell(model, concepts[cell.subject.name], cell, folder / cell.place, settings)


def check_prompts(cells: Sequence[Cell], folder: Path) -> None:
    """Raises ProtocolError where `generate` drew a subject's pictures in `folder` for other prompts than `cells`."""
    prompts: dict[str, list[str]] = {}
    for cell in cells:
        prompts.setdefault(cell.subject.name, []).append(cell.prompt.template)
    for name, asked in prompts.items():
        drawn = _recorded(folder / name / RECORD)
        if drawn is not None and drawn.get("prompts") != asked:
            raise ProtocolError(
                f"{name}/ was drawn for other prompts (see its {RECORD}); give those, or another folder"
            )


def _draw_cell(
    model: TextToImageModel, concept: Concept, cell: Cell, folder: Path, settings: Generation
) -> Iterator[Path]:
    paths = [folder / f"{number:02d}.png" for number in range(settings.pictures)]
    todo = [number for number, path in enumerate(paths) if not path.is_file()]
    yield from (path for path in paths if path.is_file())
    template = cell.prompt.template
    if settings.class_word:
        template = template.replace(PLACEHOLDER, f"{PLACEHOLDER} {cell.subject.class_name}")
    first = settings.seed + SEEDS_A_PROMPT * cell.number
    for start in range(0, len(todo), settings.batch):
        part = todo[start : start + settings.batch]
        pictures = _draw(model, concept, template, [first + number for number in part], settings)
        for number, picture in zip(part, pictures, strict=True):
            yield atomic_write_verified(paths[number], _png(picture))


@torch.no_grad()
def _draw(
    model: TextToImageModel, concept: Concept, template: str, seeds: Sequence[int], settings: Generation
) -> np.ndarray:
    deltas = from_lora(model, concept.lora) if concept.lora else {}
    with model.session(), apply_deltas(model, deltas):
        shape, layers = ImageSize(settings.size, settings.size), layer_vectors_of(concept, model)
        empty = model.conditioning(encode_prompts(model, [""]), shape)
        encoding = encode_prompts(model, [template], vectors=concept.vectors, layers=layers)
        context = model.conditioning(encoding, shape)
        side = settings.size // model.latent_factor
        latents = sample(
            model,
            context,
            empty,
            shape=(len(seeds), model.latent_channels, side, side),
            steps=settings.steps,
            guidance=settings.guidance,
            seed=list(seeds),
            eta=settings.eta,
        )
        return as_bytes(model.to_images(latents))


def _check_size(model: TextToImageModel, size: int) -> None:
    unit = model.latent_factor * 8  # so that every UNet can halve it three times
    if size <= 0 or size % unit:
        raise ValueError(f"the size of the pictures is a multiple of {unit} for this model, not {size}")


def _facts(model: TextToImageModel, concept: Concept, settings: Generation) -> dict[str, Any]:
    decisive = {key: value for key, value in asdict(settings).items() if key not in ("pictures", "batch")}
    return {
        "model": model.fingerprint,
        "concept": concept.name,
        "learned": fingerprint(
            {
                f"{part} {key}": value
                for part in ("vectors", "layer_vectors", "lora")
                for key, value in (getattr(concept, part) or {}).items()
            }
        ),
        **decisive,
    }


def _record(path: Path, facts: dict[str, Any]) -> None:
    before = _recorded(path)
    if before is None:
        atomic_write_verified(path, (json.dumps(facts, indent=2) + "\n").encode(), if_exists="replace")
    elif before != facts:
        raise ProtocolError(
            f"{path.parent.name}/ holds pictures drawn with another model, concept or settings (see {RECORD} there); "
            "choose another folder, or remove them"
        )


def _recorded(path: Path) -> dict[str, Any] | None:
    """What a record says; {} where it cannot be read, None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
