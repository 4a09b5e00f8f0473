"""What may be added to a frozen layer while it runs: a low-rank delta, or a full-rank one.

    with apply_deltas(model, {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": LowRankDelta(a, b)}):
        model.predict(...)

A delta is added to a layer's *output*: its own weight is neither read nor written, so it may be cast, quantized,
streamed or patched by others, and gradients reach the delta alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from ..maths.low_rank import low_rank, low_rank_weight
from .protocol import TextToImageModel
from .replay import Replayable

Rows = slice | torch.Tensor
"""The samples of a batch on which a delta acts: a slice of them, or a factor for each, (B,)."""


class Delta(Protocol):
    """A change of one layer."""

    def check(self, name: str, module: torch.nn.Module) -> None:
        """Raises ValueError where it does not fit the layer."""

    def __call__(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What it adds to `module(x)`."""


def is_linear(part: torch.nn.Module) -> bool:
    """Also ComfyUI's quantised layers are, by what they do and not by their class."""
    return isinstance(part, torch.nn.Linear) or (hasattr(part, "in_features") and hasattr(part, "out_features"))


@dataclass(frozen=True)
class LowRankDelta:
    """METHODS.md D1: y = x W + `scale` (x A) B on a linear layer.

    `a` (Din, r) and `b` (r, Dout), or (B, Din, r) and (B, r, Dout) for a delta of its own for every sample. They may
    require gradients and keep their type (float32 to train); they should lie on the model's device.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0

    @classmethod
    def initial(
        cls, module: torch.nn.Module, rank: int, *, generator: torch.Generator | None = None, scale: float = 1.0
    ) -> LowRankDelta:
        """A delta that changes nothing yet, trainable: `a` uniform as a linear layer's weight, `b` zero.

        Drawn on the CPU, so it does not depend on the device. Raises ValueError for a rank below 1.
        """
        if rank < 1:
            raise ValueError(f"the rank of a delta is at least 1, not {rank}")
        inputs, outputs = module.in_features, module.out_features
        bound = 1 / math.sqrt(inputs)
        a = (torch.rand(inputs, rank, generator=generator) * 2 - 1) * bound
        device = module.weight.device
        return cls(a.to(device).requires_grad_(), torch.zeros(rank, outputs, device=device).requires_grad_(), scale)

    @property
    def rank(self) -> int:
        return int(self.a.shape[-1])

    def check(self, name: str, module: torch.nn.Module) -> None:
        wanted = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if (self.a.shape[-2], self.b.shape[-1]) != wanted or self.b.shape[-2] != self.rank:
            raise ValueError(
                f"a delta of {tuple(self.a.shape)} and {tuple(self.b.shape)} does not fit the layer {name}, "
                f"which takes {wanted[0]} numbers and gives {wanted[1]}"
            )

    def __call__(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return low_rank(x, self.a.to(x.device, x.dtype), self.b.to(x.device, x.dtype), self.scale)

    def masked(self, mask: torch.Tensor) -> LowRankDelta:
        """One delta a sample, which has only those directions of this one that `mask` (B, r) has for it."""
        return LowRankDelta(self.a * mask[:, None, :], self.b.expand(len(mask), *self.b.shape), self.scale)

    def weight(self) -> torch.Tensor:
        """The change of the layer's weight in PyTorch's layout (Dout, Din), float32."""
        return low_rank_weight(self.a.float(), self.b.float(), self.scale).mT


@dataclass(frozen=True)
class WeightDelta:
    """A full-rank change of any layer with a weight: linear, convolution or norm. ComfyUI's `.diff` and `.diff_b`.

    `weight` and `bias` have the shapes of the layer's; either may be None. A layer's output is linear in its
    parameters, so the change of the output is the layer's own formula with these in their place.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    scale: float = 1.0

    def check(self, name: str, module: torch.nn.Module) -> None:
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm):
            raise ValueError(f"{name} is a {type(module).__name__}, whose change cannot be computed")
        for part in ("weight", "bias"):
            ours, theirs = getattr(self, part), getattr(module, part)
            if ours is not None and (theirs is None or ours.shape != theirs.shape):
                shape = "none" if theirs is None else tuple(theirs.shape)
                raise ValueError(f"a {part} delta of {tuple(ours.shape)} does not fit the layer {name}: {shape}")

    def __call__(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (None if value is None else value.to(x.device, x.dtype) for value in (self.weight, self.bias))
        return self.scale * _affine(module, x, weight, bias)


def _affine(
    module: torch.nn.Module, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """The formula of `module` with other parameters; None counts as zeros."""
    if weight is None:
        channels_last = isinstance(module, torch.nn.Linear | torch.nn.LayerNorm)
        return bias if channels_last else bias.view(-1, *[1] * (x.ndim - 2))  # type: ignore[union-attr]
    if isinstance(module, torch.nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(module, torch.nn.Conv2d):
        return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    if isinstance(module, torch.nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)  # type: ignore[attr-defined]


@contextmanager
def apply_deltas(
    model: TextToImageModel, deltas: Mapping[str, Delta | Sequence[Delta]], rows: Rows | None = None
) -> Iterator[None]:
    """Every named layer with its deltas inside, as it was on exit, also after errors.

    Names are diffusers' for the UNet ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k") and, behind the
    encoder's name, transformers' for a text encoder ("clip_l.text_model.encoder.layers.0.self_attn.q_proj"). Several
    deltas of one layer add up, within one mapping or of nested contexts. `rows` limits them to some samples of the
    batch: give it where the batch is known, so not for text encoders.

    A checkpointed block that runs again in the backward pass finds the deltas it first saw, even after the exit.

    Raises:
        ValueError: no layer has the name, or a delta does not fit its layer.
    """
    layers = layers_for(model, deltas)
    with ExitStack() as stack:
        for name, given in deltas.items():
            for delta in given if isinstance(given, Sequence) else [given]:
                delta.check(name, layers[name])
                stack.enter_context(hooked(layers[name], DeltaHook(delta, rows)))
        yield


def layers_for(model: TextToImageModel, names: Mapping[str, Any]) -> dict[str, torch.nn.Module]:
    """The modules of these names. Raises ValueError that names one which the model has not."""
    if not names:
        return {}
    found = dict(model.linear_layers())
    if not all(name in found for name in names):
        found |= text_weight_layers(model)
    if not all(name in found for name in names):
        found |= model.weight_layers()
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{model.name} has no layer {missing[0]!r}" + _and_others(missing))
    return {name: found[name] for name in names}


def text_layers(model: TextToImageModel) -> dict[str, torch.nn.Module]:
    """The linear layers of every text encoder, "<encoder>.<transformers' name>"."""
    return _of_encoders({name: encoder.linear_layers() for name, encoder in model.text_encoders.items()})


def text_weight_layers(model: TextToImageModel) -> dict[str, torch.nn.Module]:
    """The linear layers and layer norms of every text encoder, named as in `text_layers`."""
    return _of_encoders({name: encoder.weight_layers() for name, encoder in model.text_encoders.items()})


def _of_encoders(layers: Mapping[str, Mapping[str, torch.nn.Module]]) -> dict[str, torch.nn.Module]:
    return {f"{name}.{layer}": module for name, found in layers.items() for layer, module in found.items()}


def output_scale(keywords: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor | float:
    """What a layer has multiplied its product with. ComfyUI's linear layers, since 0.39, may add a residual to it and
    apply an activation before it. Raises RuntimeError for the latter: the product is then not that of the input."""
    act = keywords.get("input_act")
    if act is not None:
        raise RuntimeError(
            f"this ComfyUI has folded the activation {act!r} into a layer that a LoRA or a second path changes, which "
            "cannot be followed there: choose layers of the attention, or use ComfyUI 0.33"
        )
    scale = keywords.get("residual_scale")
    return scale.expand_as(output) if isinstance(scale, torch.Tensor) else 1.0 if scale is None else scale


@dataclass(frozen=True, eq=False)
class DeltaHook(Replayable):
    """A forward hook that adds a delta to what a layer gives."""

    delta: Delta
    rows: Rows | None = None

    def __call__(
        self,
        module: torch.nn.Module,
        inputs: tuple[torch.Tensor, ...],
        keywords: Mapping[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        (x, *_), scale = inputs, output_scale(keywords, output)
        if self.rows is None:
            return output + scale * self.delta(module, x)
        if isinstance(self.rows, slice):
            start, stop, _ = self.rows.indices(len(x))
            share = scale[start:stop] if isinstance(scale, torch.Tensor) else scale
            changed = output[start:stop] + share * self.delta(module, x[start:stop])
            return torch.cat([output[:start], changed, output[stop:]])
        factors = self.rows.to(output.device, output.dtype)
        return output + factors.view(-1, *[1] * (output.ndim - 1)) * scale * self.delta(module, x)


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
    """`module` with a forward hook inside, or with one `before` it, which then goes before those already there."""
    keywords = isinstance(hook, Replayable)
    if before:
        handle = module.register_forward_pre_hook(hook, prepend=True, with_kwargs=keywords)
    else:
        handle = module.register_forward_hook(hook, with_kwargs=keywords)
    try:
        yield
    finally:
        handle.remove()


def with_deltas(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`module(x)` for another batch than the one that is running, with the deltas on it that act on any batch, and
    without whatever looks on."""
    output = module.forward(x)
    for hook in list(module._forward_hooks.values()):
        if isinstance(hook, DeltaHook) and hook.rows is None:
            output = hook(module, (x,), {}, output)
    return output


def _and_others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
