"""The text encoders of a CLIP alone, where no MODEL and no VAE is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...core.models.frozen import autograd, frozen
from ...core.models.protocol import fingerprint
from .text import ComfyTextEncoder, differentiable_layers, text_encoders
from .weights import base_weight, loaded, normal_tensors, patches_digest, plain_patcher


def encoders_of(clip: Any) -> dict[str, ComfyTextEncoder]:
    """The text encoders by name, to look at. Raises ValueError where the CLIP is none of Stable Diffusion's."""
    return _encoders(clip, plain_patcher(clip.patcher))


@contextmanager
def encoder_session(clip: Any) -> Iterator[dict[str, ComfyTextEncoder]]:
    """Text encoders that gradients go through, loaded and frozen; everything is as it was on exit."""
    patcher = plain_patcher(clip.patcher)
    modules = [patcher.model]
    with frozen(modules), loaded([patcher]), differentiable_layers(modules), autograd(), normal_tensors(modules):
        yield _encoders(clip, patcher)


def content_of(encoder: ComfyTextEncoder) -> str:
    """What decides the outputs of a text encoder beside its token table, which is all that its `fingerprint` tells:
    its weights, the LoRAs and merges on them, and what CLIPSetLastLayer chose."""
    kept = list(encoder.weight_layers())
    keys = {name: f"{encoder.name}.transformer.{name}.weight" for name in (kept[0], kept[-1])}
    weights = fingerprint({name: base_weight(encoder.patcher, key) for name, key in keys.items()})
    return f"{weights}/{patches_digest(encoder.patcher)}/{encoder.layer}"


def _encoders(clip: Any, patcher: Any) -> dict[str, ComfyTextEncoder]:
    found = text_encoders(patcher, clip.tokenizer, layer=clip.layer_idx)
    return {encoder.name: encoder for encoder in found}
