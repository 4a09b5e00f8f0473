"""Two paths through every attention while any stock sampler runs (METHODS.md 3.6).

What is blended travels with the conditioning, under a key of our own, so that only the rows of that conditioning have
two paths; negative prompts, areas and other people's conditionings pass as in a plain model. Hooks are on the model's
layers for the length of one UNet pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.conds import CONDRegular
from comfy.patcher_extension import WrappersMP

from ...core.maths.dual_path import blend
from ...core.models.dual_path import DualPath, paths_in
from ...core.models.low_rank import is_linear
from ...core.models.protocol import Conditioning
from .attention import cross_attention_layers, diffusers_names, named_layers

KEY = "contextual_inversion_dual_path"


# What travels with the conditioning


@dataclass(frozen=True)
class SoftPrompt:
    """The soft path of one conditioning: (1, L, D), its pooled output where the model has one, and when it counts."""

    context: torch.Tensor
    pooled: torch.Tensor | None
    path: DualPath
    window: tuple[float, float]
    """The sigmas between which there are two paths."""

    def counts(self, sigma: float) -> bool:
        start, end = self.window
        return end <= sigma <= start


class SoftCondition(CONDRegular):
    """The soft prompt of each row of a batch, or None where a row has none; batches with any other of its kind."""

    cond: tuple[SoftPrompt | None, int]

    def process_cond(self, batch_size: int, **_: Any) -> SoftCondition:
        return self._copy_with((self.cond[0], batch_size))

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, SoftCondition)

    def concat(self, others: Sequence[SoftCondition]) -> list[tuple[SoftPrompt | None, int]]:
        return [self.cond, *(other.cond for other in others)]

    def size(self) -> list[int]:
        return [1] if self.cond[0] is None else [self.cond[1], *self.cond[0].context.shape[1:]]


def two_paths(hard: list[Any], soft: list[Any], path: DualPath, window: tuple[float, float]) -> list[Any]:
    """One entry of a CONDITIONING: the hard prompt, and beside it the soft one."""
    (hard_tokens, options), (soft_tokens, soft_options) = hard, soft
    if soft_tokens.shape[1] != hard_tokens.shape[1]:
        # A token more or less may need another chunk of 77. Attention does not change when all tokens are repeated.
        tokens = torch.lcm(torch.tensor(soft_tokens.shape[1]), torch.tensor(hard_tokens.shape[1]))
        hard_tokens, soft_tokens = (x.repeat(1, int(tokens) // x.shape[1], 1) for x in (hard_tokens, soft_tokens))
    prompt = SoftPrompt(soft_tokens, soft_options.get("pooled_output"), path, window)
    ours = {**options.get("model_conds", {}), KEY: SoftCondition((prompt, 1))}
    return [hard_tokens, {**options, "model_conds": ours}]


# What the model does with it


def with_two_paths(model: Any) -> Any:
    """A clone of `model` that takes both paths for conditionings that have them."""
    clone = model.clone()
    if KEY not in clone.wrappers.get(WrappersMP.DIFFUSION_MODEL, {}):
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, mark_the_others)
        names = diffusers_names(model.model.model_config.unet_config)
        # Before the others, so that whatever looks on at the projections sees what the paths have made of them.
        others = clone.wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
        clone.wrappers[WrappersMP.DIFFUSION_MODEL] = {KEY: [_TwoPaths(names)], **others}
    return clone


def mark_the_others(run: Any, model: Any, conds: Sequence[Any], *rest: Any, **keywords: Any) -> Any:
    """Only conditionings with the same keys share a batch: the others get ours, with nothing in it."""
    everything = [cond for part in conds if part is not None for cond in part]
    if not any(KEY in cond["model_conds"] for cond in everything):
        return run(model, conds, *rest, **keywords)
    nothing = SoftCondition((None, 1))
    marked = [
        None if part is None else [{**cond, "model_conds": {KEY: nothing, **cond["model_conds"]}} for cond in part]
        for part in conds
    ]
    return run(model, marked, *rest, **keywords)


@dataclass(frozen=True)
class _TwoPaths:
    """Around one pass of the UNet, whose layers have diffusers' `names` by ComfyUI's."""

    names: Mapping[str, str]
    found: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    def __call__(
        self,
        run: Any,
        x: torch.Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Any:
        options = dict(transformer_options or {})
        chunks = chunks_of(conditions.pop(KEY, None) or [], options)
        if not chunks:
            return run(x, timesteps, context, y, control, options, **conditions)
        linear, layers = self._layers(run.class_obj)
        with ExitStack() as stack:
            for rows, soft in chunks:
                given = Conditioning(soft.context.to(x.device, x.dtype))
                stack.enter_context(paths_in(linear, layers, replace(soft.path, soft=given, rows=rows)))
                if y is not None and soft.pooled is not None:
                    y = _with_pooled(y, soft, rows)
            options = _beside_others(options, x.shape[0], [rows for rows, _ in chunks])
            return run(x, timesteps, context, y, control, options, **conditions)

    def _layers(self, unet: Any) -> tuple[dict[str, torch.nn.Module], list[str]]:
        """The UNet's linear layers and its cross-attentions, by name; copies of a model have modules of their own."""
        if unet not in self.found:
            linear = {name: part for name, part in named_layers(unet, self.names).items() if is_linear(part)}
            self.found[unet] = linear, [layer.name for layer in cross_attention_layers(unet, self.names)]
        return self.found[unet]


def chunks_of(
    entries: Sequence[tuple[SoftPrompt | None, int]], options: Mapping[str, Any]
) -> list[tuple[slice, SoftPrompt]]:
    """The rows that have two paths now."""
    sigma = options.get("sigmas")
    found, start = [], 0
    for soft, count in entries:
        if soft is not None and (sigma is None or soft.counts(float(sigma.flatten()[0]))):
            found.append((slice(start, start + count), soft))
        start += count
    return found


def _with_pooled(y: torch.Tensor, soft: SoftPrompt, rows: slice) -> torch.Tensor:
    """SDXL's vector begins with the pooled prompt, which belongs to no attention layer: blended with the mean alpha."""
    width = soft.pooled.shape[-1]  # type: ignore[union-attr]
    hard = y[rows, :width]
    mixed = blend(soft.pooled.to(y).expand(len(hard), -1), hard, soft.path.mean_alpha)  # type: ignore[union-attr]
    changed = torch.cat([mixed, y[rows, width:]], dim=1)
    return torch.cat([y[: rows.start], changed, y[rows.stop :]])


def _beside_others(options: dict[str, Any], batch: int, rows: Sequence[slice]) -> dict[str, Any]:
    """Attention replacements of other nodes know the batch as it was: they run once for each path."""
    replacements = options.get("patches_replace", {})
    ours = {
        kind: {key: _once_a_path(theirs, batch, rows) for key, theirs in replacements.get(kind, {}).items()}
        for kind in ("attn1", "attn2")
    }
    return {**options, "patches_replace": {**replacements, **{kind: found for kind, found in ours.items() if found}}}


def _once_a_path(theirs: Any, batch: int, rows: Sequence[slice]) -> Any:
    def replacement(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        if len(q) == batch:
            return theirs(q, k, v, extra)
        hard = theirs(q[:batch], k[:batch], v[:batch], extra)
        soft = theirs(*(_in_place(x, batch, rows) for x in (q, k, v)), extra)
        return torch.cat([hard, *(soft[part] for part in rows)])

    return replacement


def _in_place(x: torch.Tensor, batch: int, rows: Sequence[slice]) -> torch.Tensor:
    """The batch with the soft rows, which come behind it, where they belong."""
    whole, start = x[:batch].clone(), batch
    for part in rows:
        count = part.stop - part.start
        whole[part] = x[start : start + count]
        start += count
    return whole
