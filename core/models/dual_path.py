"""Two paths through every attention layer of a UNet, blended after it (METHODS.md 3.6, D6 and D7).

Soft path: the prompt with the learned word, weights W + dW. Hard path: the prompt with the word's nearest vocabulary
word, weights W. One UNet pass; only the attention of the rows that have a soft prompt is computed twice, and of it only
what differs: a projection of a common input is computed once and its delta added, and since the output projection is
linear, the two results are blended before it. Norms, feed-forward and convolutions are single.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from einops import repeat

from ..maths.dual_path import ALPHA, blend, check_alpha
from .low_rank import Delta, hooked, output_scale, with_deltas
from .protocol import AttentionObserver, AttentionWatcher, Conditioning, TextToImageModel
from .replay import Replayable

ModulatedPath = Literal["soft", "hard"]
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class DualPath:
    """What is blended. `soft` is the prompt with the learned word, for a batch of 1 or of the rows it applies to.

    `alpha` multiplies the soft path (METHODS.md 3.6): one number, or one for each transformer block in forward order,
    that is for each layer of `cross_attention_layers()` and the self-attention before it. `modulated` names the path
    that has the deltas: "soft" is the paper, "hard" the other pairing. `rows` are the samples of the batch that have
    two paths (with classifier-free guidance the conditional part); the others pass as in a plain model.

    Raises ValueError for an alpha outside [0, 1], an unknown path, and deltas of other layers than the attention's.
    """

    soft: Conditioning
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    alpha: float | Sequence[float] = ALPHA
    modulated: ModulatedPath = "soft"
    rows: slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        for alpha in self.alpha if isinstance(self.alpha, Sequence) else [self.alpha]:
            check_alpha(alpha)
        if self.modulated not in get_args(ModulatedPath):
            raise ValueError(f"the modulated path is soft or hard, not {self.modulated!r}")
        self.require_projections()

    def require_projections(self) -> None:
        """Raises ValueError for deltas of layers in which the two paths are one."""
        others = [name for name in self.deltas if not name.endswith(tuple(f".{part}" for part in PROJECTIONS))]
        others += [
            name for name in self.deltas if name not in others and ".attn1." not in name and ".attn2." not in name
        ]
        if others:
            raise ValueError(
                f"two paths can differ in attention projections only; the LoRA also changes {others[0]}"
                + (f" and {len(others) - 1} more layers" if len(others) > 1 else "")
            )

    def alphas(self, blocks: int) -> list[float]:
        """alpha of each of `blocks` transformer blocks. Raises ValueError where a list has another length."""
        if not isinstance(self.alpha, Sequence):
            return [float(self.alpha)] * blocks
        if len(self.alpha) != blocks:
            raise ValueError(f"the model has {blocks} attention blocks, alpha has {len(self.alpha)} numbers")
        return [float(alpha) for alpha in self.alpha]

    @property
    def mean_alpha(self) -> float:
        """What the pooled prompt, which no single block owns, is blended with."""
        values = self.alpha if isinstance(self.alpha, Sequence) else [self.alpha]
        return float(sum(values) / len(values))


def predict_dual(
    model: TextToImageModel,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    hard: Conditioning,
    path: DualPath,
    probe: AttentionWatcher | None = None,
    *,
    linear: Mapping[str, torch.nn.Module] | None = None,
) -> torch.Tensor:
    """`TextToImageModel.predict` over both paths; `hard` is the prompt of the whole batch with the vocabulary word.

    Differentiable also in the deltas and in `path.soft`. `probe` sees the blend of both paths' attention.
    `linear` is `model.linear_layers()`, for a caller that has it from an earlier step.
    """
    y = hard.y
    if y is not None and path.soft.y is not None:
        start, stop, _ = path.rows.indices(len(y))
        mixed = blend(path.soft.y.expand(stop - start, -1).to(y), y[start:stop], path.mean_alpha)
        y = torch.cat([y[:start], mixed, y[stop:]])
    if probe is not None:
        probe = _blended(probe, path, len(latents), path.alphas(len(model.cross_attention_layers())))
    with dual_path(model, path, linear):
        return model.predict(latents, timesteps, replace(hard, y=y), probe)


class DualPathModel:
    """A `TextToImageModel` whose every prediction goes over both paths, for `sample` and previews."""

    def __init__(self, model: TextToImageModel, path: DualPath) -> None:
        self.model, self.path = model, path
        self._linear = model.linear_layers()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        return predict_dual(self.model, latents, timesteps, conditioning, self.path, probe, linear=self._linear)


@contextmanager
def dual_path(
    model: TextToImageModel, path: DualPath, linear: Mapping[str, torch.nn.Module] | None = None
) -> Iterator[None]:
    """`model.predict` goes over both paths inside; everything is as it was on exit, also after errors."""
    linear = model.linear_layers() if linear is None else linear
    with model.flexible_attention(), paths_in(linear, model.cross_attention_layers(), path):
        yield


@contextmanager
def paths_in(linear: Mapping[str, torch.nn.Module], layers: Sequence[str], path: DualPath) -> Iterator[None]:
    """Hooks on the projections of every attention, by diffusers' names; `layers` are the cross-attentions in order.

    Raises ValueError where a delta does not fit, or belongs to a layer that is not there.
    """
    for name, delta in path.deltas.items():
        if name not in linear:
            raise ValueError(f"the model has no layer {name!r}: the LoRA is for another kind of model")
        delta.check(name, linear[name])
    with ExitStack() as stack:
        for layer, alpha in zip(layers, path.alphas(len(layers)), strict=True):
            block = layer.removesuffix(".attn2")
            for attention, context in (("attn1", None), ("attn2", path.soft.context)):
                names = [f"{block}.{attention}.{part}" for part in PROJECTIONS]
                lost = [name for name in names if name not in linear]
                if attention == "attn1" and len(lost) == len(names):
                    continue  # a block without self-attention
                if lost:
                    raise ValueError(
                        f"the model has no layer {lost[0]!r} of its own, so it cannot take two paths there"
                    )
                found = [(linear[name], path.deltas.get(name)) for name in names]
                stack.enter_context(_two_paths(found, context, alpha, path))
        yield


@contextmanager
def _two_paths(
    parts: Sequence[tuple[torch.nn.Module, Delta | None]],
    context: torch.Tensor | None,
    alpha: float,
    path: DualPath,
) -> Iterator[None]:
    """One attention layer. `context` is the soft path's in cross-attention, None in self-attention."""
    inputs, (out, out_delta) = parts[:3], parts[3]
    differs = context is not None or any(delta for _, delta in inputs)
    layer = _Layer(alpha, path.modulated == "soft", path.rows, doubled=differs and 0 < alpha < 1)
    # With alpha 0 one path alone is computed, bit by bit as a plain model would.
    if alpha == 0 and (layer.soft or not any(delta for _, delta in parts)):
        yield
        return
    with ExitStack() as stack:
        if differs:
            for index, (module, delta) in enumerate(inputs):
                own = context if index > 0 else None
                stack.enter_context(hooked(module, _Projection(layer, delta, own)))
        if layer.doubled:
            stack.enter_context(hooked(out, _Blend(layer), before=True))
        if out_delta is not None:
            stack.enter_context(hooked(out, _Output(layer, out_delta)))
        yield


@dataclass(eq=False)
class _Layer:
    """What the hooks of one attention layer share."""

    alpha: float
    soft: bool
    """The soft path has the deltas, else the hard one."""
    rows: slice
    doubled: bool
    batch: int = 0
    modulated: torch.Tensor | None = None
    """What the output projection of the path with the deltas takes in."""


@dataclass(eq=False)
class _Projection(Replayable):
    """A hook of to_q, to_k or to_v: behind the batch come the same rows on the soft path, or, where one path alone
    counts, that path takes their place."""

    layer: _Layer
    delta: Delta | None
    context: torch.Tensor | None

    def __call__(
        self,
        module: torch.nn.Module,
        inputs: tuple[torch.Tensor, ...],
        keywords: Mapping[str, Any],
        output: torch.Tensor,
    ) -> Any:
        layer, x = self.layer, inputs[0]
        output_scale(keywords, output)
        layer.batch = len(output)
        start, stop, _ = layer.rows.indices(layer.batch)
        x, own = x[start:stop], output[start:stop]
        soft = None if layer.alpha == 0 else self._soft(module, x, own)
        if soft is not None and not layer.doubled:
            return _replaced(output, start, stop, soft)
        if not layer.soft and self.delta is not None:
            output = _replaced(output, start, stop, own + self.delta(module, x))
        return output if soft is None else torch.cat([output, soft])

    def _soft(self, module: torch.nn.Module, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.context is not None:
            x = _soft_context(self.context, x)
            # The module itself and not its weight, which may be cast, streamed or patched.
            output = with_deltas(module, x)
        return output + self.delta(module, x) if self.layer.soft and self.delta is not None else output


@dataclass(eq=False)
class _Blend(Replayable):
    """The hook before to_out: D6, D7 before the output projection, which is linear, so that its bias is shared and its
    weight acts once, on the blend."""

    layer: _Layer

    def __call__(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], keywords: Mapping[str, Any]
    ) -> tuple[tuple[torch.Tensor, ...], Mapping[str, Any]]:
        layer, both = self.layer, inputs[0]
        start, stop, _ = layer.rows.indices(layer.batch)
        hard, soft = both[start:stop], both[layer.batch :]
        layer.modulated = soft if layer.soft else hard
        mixed = blend(soft, hard, layer.alpha)
        return (_replaced(both[: layer.batch], start, stop, mixed), *inputs[1:]), keywords


@dataclass(eq=False)
class _Output(Replayable):
    """The hook behind to_out: its own delta, on the path that has it."""

    layer: _Layer
    delta: Delta

    def __call__(
        self,
        module: torch.nn.Module,
        inputs: tuple[torch.Tensor, ...],
        keywords: Mapping[str, Any],
        output: torch.Tensor,
    ) -> Any:
        layer, scale = self.layer, output_scale(keywords, output)
        start, stop, _ = layer.rows.indices(len(output))
        x = inputs[0][start:stop] if layer.modulated is None else layer.modulated
        layer.modulated = None
        share = layer.alpha if layer.soft else 1 - layer.alpha
        if share == 0:
            return None
        scale = scale[start:stop] if isinstance(scale, torch.Tensor) else scale
        changed = output[start:stop] + share * scale * self.delta(module, x)
        return _replaced(output, start, stop, changed)


def _replaced(batch: torch.Tensor, start: int, stop: int, rows: torch.Tensor) -> torch.Tensor:
    """`batch` with `rows` from `start` to `stop`. On small models every piece costs as much as a layer."""
    before = [batch[:start]] if start else []
    behind = [batch[stop:]] if stop < len(batch) else []
    return torch.cat([*before, rows, *behind]) if before or behind else rows


def _soft_context(context: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
    """The soft prompt for these rows, with as many tokens as the hard one: repeated where a batch repeated the hard
    prompt to the length of another, and with the tokens that others appended to the hard prompt."""
    soft = context.to(hard).expand(len(hard), -1, -1) if len(context) == 1 else context.to(hard)
    own, every = soft.shape[1], hard.shape[1]
    if every <= own:
        return soft
    times = every // own
    if every == times * own and torch.equal(hard, _again(hard[:, :own], times)):
        return _again(soft, times)
    return torch.cat([soft, hard[:, own:]], dim=1)


def _again(context: torch.Tensor, times: int) -> torch.Tensor:
    return repeat(context, "b l d -> b (times l) d", times=times)


def _blended(probe: AttentionWatcher, path: DualPath, batch: int, alphas: Sequence[float]) -> AttentionWatcher:
    """A probe sees the blend of the probabilities; an observer, which sees none, those of the hard path."""
    if isinstance(probe, AttentionObserver):
        return _FirstRows(probe, batch)
    start, stop, _ = path.rows.indices(batch)

    def report(layer: int, probabilities: torch.Tensor) -> None:
        if len(probabilities) > batch:
            mixed = blend(probabilities[batch:], probabilities[start:stop], alphas[layer])
            probabilities = torch.cat([probabilities[:start], mixed, probabilities[stop:batch]])
        probe(layer, probabilities)

    return report


@dataclass(frozen=True)
class _FirstRows:
    observer: AttentionObserver
    batch: int

    def observe(self, layer: int, query: torch.Tensor, key: torch.Tensor, *rest: Any) -> None:
        self.observer.observe(layer, query[: self.batch], key[: self.batch], *rest)


__all__ = ["DualPath", "DualPathModel", "ModulatedPath", "dual_path", "paths_in", "predict_dual"]
