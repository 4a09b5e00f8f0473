"""The text encoders of a CLIP alone, where no MODEL and no VAE is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...core.models.frozen import autograd, frozen
from ...core.models.kept import kept_for_backward
from ...core.models.protocol import fingerprint
from .families.encoders import FamilyTextEncoder, family_encoders
from .text import ComfyTextEncoder, differentiable_layers, is_stable_diffusion, text_encoders
from .weights import base_weight, load, loaded, normal_tensors, patches_digest, plain_patcher

TextEncoderOfCLIP = ComfyTextEncoder | FamilyTextEncoder


def encoders_of(clip: Any) -> dict[str, TextEncoderOfCLIP]:
    """The text encoders by name, to look at. Raises ValueError where the CLIP is of no kind that is known."""
    return _encoders(clip, plain_patcher(clip.patcher))


@contextmanager
def encoder_session(clip: Any) -> Iterator[dict[str, TextEncoderOfCLIP]]:
    """Text encoders that gradients go through, loaded and frozen; everything is as it was on exit."""
    patcher = plain_patcher(clip.patcher)
    modules = [patcher.model]
    exact = differentiable_layers(modules) if is_stable_diffusion(patcher.model) else kept_for_backward()
    with frozen(modules), loaded([patcher]), exact, autograd(), normal_tensors(modules):
        yield _encoders(clip, patcher, training=True)


def content_of(encoder: TextEncoderOfCLIP) -> str:
    """What decides the outputs of a text encoder beside its token table, which is all that its `fingerprint` tells:
    its weights, the LoRAs and merges on them, and what CLIPSetLastLayer chose."""
    if isinstance(encoder, FamilyTextEncoder):
        keys = encoder.telling_weights()
    else:
        kept = list(encoder.weight_layers())
        keys = {name: f"{encoder.name}.transformer.{name}.weight" for name in (kept[0], kept[-1])}
    weights = fingerprint({name: base_weight(encoder.patcher, key) for name, key in keys.items()})
    return f"{weights}/{patches_digest(encoder.patcher)}/{encoder.layer}"


def _encoders(clip: Any, patcher: Any, *, training: bool = False) -> dict[str, TextEncoderOfCLIP]:
    if is_stable_diffusion(patcher.model):
        found = text_encoders(patcher, clip.tokenizer, layer=clip.layer_idx)
    else:
        told = {"ready": lambda _: load([patcher], alone=False), "training": lambda: (training, False, False)}
        found = family_encoders(clip, patcher, device=patcher.load_device, **told)
    return {encoder.name: encoder for encoder in found}
