"""Bundle files: embedding and LoRA (and per-layer vectors) in one file that stock loaders understand.

The keys `bundle_emb.<name>.<encoder>` are what `embedding:` looks for in a file; the kohya-named LoRA tensors beside
them are what LoRA loaders look for; each leaves the other alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..concept import Concept
from ..wording import listed, quoted
from .atomic import IfExists
from .embedding import check_widths, concept_of_vectors, encoder_of_width
from .errors import ConceptFileError
from .kinds import BUNDLE_PREFIX, LATENTS, LAYER_PREFIX, has_lora, is_lora_key
from .metadata import Facts, read_facts, write_facts
from .reading import read_tensors
from .writing import narrowed, write_concept_file

NAMELESS = "string_to_param.*"


def save_bundle(
    concept: Concept,
    root: Path | str,
    name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    if_exists: IfExists = "error",
) -> Path:
    """Write everything a concept holds to `root/name.safetensors` and return the path.

    float16 halves the LoRA too; otherwise LoRA tensors keep their own type. Put an embedding-only twin beside the other
    embeddings with `save_embedding`.

    Raises:
        ValueError: an unsafe name.
        ConceptFileError: a LoRA key that no loader would find, or float16 cannot hold a value.
        FileExistsError, OSError: as `atomic_write_verified`.
    """
    name = name or concept.name
    label = _label(name)
    tensors = {
        f"{BUNDLE_PREFIX}{label}.{encoder}": narrowed(value, dtype, encoder)
        for encoder, value in concept.vectors.items()
    }
    for encoder, value in (concept.layer_vectors or {}).items():
        tensors[LAYER_PREFIX + encoder] = narrowed(value, dtype, LAYER_PREFIX + encoder)
    if concept.latents is not None:
        tensors[LATENTS] = narrowed(concept.latents, torch.float16, LATENTS)
    for key, value in (concept.lora or {}).items():
        if not is_lora_key(key):
            raise ConceptFileError(
                f"the LoRA tensor {key!r} has a name that no loader reads (kohya names are expected)"
            )
        tensors[key] = _lora_tensor(value, dtype, key)
    return write_concept_file(tensors, write_facts(concept, "bundle"), root, name, if_exists)


def load_bundle(path: Path | str, *, widths: Mapping[str, int] | None = None, embedding: str | None = None) -> Concept:
    """Read a bundle of this or another program.

    `widths` as in `load_embedding`. `embedding` chooses one where a file bundles several.

    Raises:
        ConceptFileError: the file is damaged, a pickle, no bundle, bundles several embeddings and none was chosen, or
            does not fit `widths`.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    concept = bundle_from_tensors(path, tensors, read_facts(path, metadata), widths, embedding)
    if widths is not None:
        check_widths(concept, widths)
    return concept


def bundle_from_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    facts: Facts,
    widths: Mapping[str, int] | None = None,
    embedding: str | None = None,
) -> Concept:
    """The concept in a bundle's tensors. Raises ConceptFileError as `load_bundle`."""
    bundled = bundled_embeddings(path, tensors)
    if not bundled:
        raise ConceptFileError(f"{path.name} bundles no embedding" + (", it is a LoRA" if has_lora(tensors) else ""))
    if embedding is None and len(bundled) > 1:
        raise ConceptFileError(f"{path.name} bundles several embeddings, choose one: {listed(sorted(bundled))}")
    label = embedding or next(iter(bundled))
    if label not in bundled:
        raise ConceptFileError(f"{path.name} bundles no {quoted(label)} but {listed(sorted(bundled))}")
    vectors = {_encoder(path, key, value, widths): value for key, value in bundled[label].items()}
    if not facts.ours or len(bundled) > 1:
        facts = replace(facts, name=label)
    # Inside a bundle the key says which encoder is meant, also one that this version does not know.
    concept = concept_of_vectors(path, vectors, facts, widths, named=True)
    return replace(
        concept,
        layer_vectors=_layer_vectors(path, tensors, concept),
        lora=_lora(path, tensors),
        latents=_latents(path, tensors.get(LATENTS)),
    )


def _label(name: str) -> str:
    """The word's name inside a bundle's keys; the true one is in the metadata.

    Readers split these keys at dots, so it has none. Diffusers takes a file of keys that all hold "lora" for a LoRA of
    its own, finds no layer in it and only warns: in capitals it refuses the file.
    """
    return name.rsplit("/", 1)[-1].replace(".", "_").replace("lora", "LoRA")


def bundled_embeddings(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """name -> what follows it in the key -> tensor, for every `bundle_emb.<name>.<key>`."""
    bundled: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(BUNDLE_PREFIX):
            rest = key.removeprefix(BUNDLE_PREFIX)
            nameless = rest.endswith("." + NAMELESS)
            label, _, encoder = (rest[: -len(NAMELESS) - 1], ".", NAMELESS) if nameless else rest.rpartition(".")
            if not label or not encoder:
                raise ConceptFileError(f"{path.name}: {key!r} names no embedding")
            bundled.setdefault(label, {})[encoder] = value
    return bundled


def _encoder(path: Path, key: str, value: torch.Tensor, widths: Mapping[str, int] | None) -> str:
    return encoder_of_width(path, value.shape[-1] if value.ndim else 0, widths) if key == NAMELESS else key


def _layer_vectors(path: Path, tensors: Mapping[str, torch.Tensor], concept: Concept) -> dict[str, torch.Tensor] | None:
    found = {}
    for key, value in tensors.items():
        if key.startswith(LAYER_PREFIX):
            encoder = key.removeprefix(LAYER_PREFIX)
            base = concept.vectors.get(encoder)
            if base is None or value.ndim != 3 or not value.is_floating_point() or value.shape[1:] != base.shape:
                raise ConceptFileError(
                    f"{path.name}: {key!r} of shape {tuple(value.shape)} does not belong to the vectors of {encoder}"
                )
            found[encoder] = value.float()
    return found or None


def _latents(path: Path, value: torch.Tensor | None) -> torch.Tensor | None:
    if value is not None and (value.ndim != 4 or not value.is_floating_point()):
        raise ConceptFileError(f"{path.name}: {LATENTS!r} of shape {tuple(value.shape)} are no latents of pictures")
    return None if value is None else value.float()


def _lora(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    lora = {}
    for key, value in tensors.items():
        if key.startswith((BUNDLE_PREFIX, LAYER_PREFIX)) or key == LATENTS:
            continue
        if not is_lora_key(key):
            raise ConceptFileError(f"{path.name}: {key!r} is neither embedding nor LoRA")
        lora[key] = value
    return lora or None


def _lora_tensor(value: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    if dtype != torch.float32 and value.is_floating_point():
        return narrowed(value, dtype, key)
    copy = value.detach().to("cpu", copy=True).contiguous()
    if copy.is_floating_point() and not bool(torch.isfinite(copy.float()).all()):
        raise ConceptFileError(f"{key} holds a value that is not finite")
    return copy
