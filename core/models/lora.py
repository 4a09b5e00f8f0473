"""Deltas as the tensors of `Concept.lora`, and back: kohya's key names around diffusers' layer names.

A low-rank delta is `<layer>.lora_down.weight` (r, Din), `.lora_up.weight` (Dout, r) and `.alpha`, where s = alpha / r:
ComfyUI's LoRA loader and diffusers read both. A full-rank one is `<layer>.diff` and `.diff_b`, which ComfyUI reads and
diffusers refuses. `<layer>` is `lora_unet_<diffusers name>` or `lora_te[1|2]_<transformers' name>`, a dot being "_".
ComfyUI knows a text encoder's norms by no such name, but as `text_encoders.<encoder>.transformer.<transformers' name>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .low_rank import Delta, LowRankDelta, WeightDelta, text_layers, text_weight_layers
from .protocol import TextToImageModel

DOWN, UP, ALPHA, DIFF, DIFF_BIAS = ".lora_down.weight", ".lora_up.weight", ".alpha", ".diff", ".diff_b"
ENDINGS = (DOWN, UP, ALPHA, DIFF, DIFF_BIAS)
TEXT_STEMS = ("lora_te", "text_encoders.")
"""How the names of a text encoder's layers begin."""


def to_lora(model: TextToImageModel, deltas: Mapping[str, Delta | Sequence[Delta]]) -> dict[str, torch.Tensor]:
    """`deltas` by layer name, as `apply_deltas` takes them, as float32 tensors on the CPU for `Concept.lora`.

    Raises ValueError for a layer that the model has not, a delta for every sample, or several of one layer.
    """
    stems = {name: stem for stem, name in kohya_names(model).items()}
    lora = {}
    for name, given in deltas.items():
        (delta,) = given if isinstance(given, Sequence) and len(given) == 1 else (given,)
        if name not in stems:
            raise ValueError(f"{model.name} has no layer {name!r}")
        lora |= {stems[name] + ending: value for ending, value in _tensors(name, delta).items()}
    return lora


def from_lora(model: TextToImageModel, lora: Mapping[str, torch.Tensor]) -> dict[str, Delta]:
    """The deltas in `Concept.lora` by layer name, on the model's device, for `apply_deltas`.

    A convolution's low-rank delta comes back full-rank. Raises ValueError for a layer that the model has not, and for
    other kinds than LoRA and full-rank differences (LoHa, LoKr, DoRA), which a LoRA loader can apply and this cannot.
    """
    if not lora:
        return {}
    names, parts = kohya_names(model), _parts(lora)
    unknown = [stem for stem in parts if stem not in names]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(parts)} layers of the LoRA, such as {unknown[0]!r}, are none of {model.name}: "
            "it is for another kind of model"
        )
    return {names[stem]: _delta(stem, part, model.device) for stem, part in parts.items()}


def kohya_names(model: TextToImageModel) -> dict[str, str]:
    """The stem of a LoRA file's keys -> the layer's name in `apply_deltas`, for every layer that has a weight."""
    stems = {"lora_unet_" + name.replace(".", "_"): name for name in model.weight_layers()}
    # The first of two text encoders is te1; the only one of a model is te without a number.
    encoders = list(model.text_encoders)
    prefixes = ["lora_te"] if len(encoders) == 1 else [f"lora_te{index + 1}" for index in range(len(encoders))]
    linear = text_layers(model)
    for name in text_weight_layers(model):
        encoder, _, layer = name.partition(".")
        kohya = f"{prefixes[encoders.index(encoder)]}_{layer.replace('.', '_')}"
        stems[kohya if name in linear else f"text_encoders.{encoder}.transformer.{layer}"] = name
    return stems


def _tensors(name: str, delta: Delta) -> dict[str, torch.Tensor]:
    if isinstance(delta, WeightDelta):
        parts = {DIFF: delta.weight, DIFF_BIAS: delta.bias}
        return {ending: _plain(delta.scale * value) for ending, value in parts.items() if value is not None}
    if not isinstance(delta, LowRankDelta) or delta.a.ndim != 2:
        raise ValueError(f"the delta of {name} cannot be stored: one low-rank or full-rank delta a layer is needed")
    alpha = torch.tensor(delta.scale * delta.rank)
    return {DOWN: _plain(delta.a.mT), UP: _plain(delta.b.mT), ALPHA: alpha}


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()


def _parts(lora: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in lora.items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        if ending is None:
            raise ValueError(
                f"the LoRA tensor {key!r} is of a kind that cannot be applied on the fly; low-rank ones can"
            )
        parts.setdefault(key.removesuffix(ending), {})[ending] = value
    return parts


def _delta(stem: str, part: Mapping[str, torch.Tensor], device: torch.device) -> Delta:
    low, full = {DOWN, UP} & set(part), {DIFF, DIFF_BIAS} & set(part)
    if bool(low) == bool(full) or len(low) == 1:
        raise ValueError(f"the LoRA tensors of {stem} are not whole: {', '.join(sorted(part))}")
    if full:
        weight, bias = (None if part.get(key) is None else part[key].to(device) for key in (DIFF, DIFF_BIAS))
        return WeightDelta(weight, bias)
    down, up = part[DOWN].to(device), part[UP].to(device)
    rank = down.shape[0]
    scale = float(part[ALPHA]) / rank if ALPHA in part else 1.0
    if down.ndim == 2:
        return LowRankDelta(down.mT, up.mT, scale)
    return WeightDelta(
        (up.flatten(1).float() @ down.flatten(1).float()).view(up.shape[0], *down.shape[1:]), None, scale
    )
