"""Recording how image tokens look at the text in such a family, while any sampler runs the model.

The attention itself stays ComfyUI's own: its override is told queries and keys and calls what would have run without
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange

from ...core.inspection.attention.recorder import AttentionRecorder, Rows
from .families.attention import Looking, joint_names, tokens_of
from .families.blocks import joint_blocks, lent, lists_of_blocks, numbered
from .families.facts import Family, family_of


def require_seen(model: Any) -> Family:
    """The family of a MODEL whose attention can be recorded. Raises ValueError in words where ComfyUI shows it to
    nobody."""
    family = family_of(model)
    if family.attends == "unseen":
        raise ValueError(
            f"the attention of {family.title} cannot be recorded: ComfyUI calls it without the options through which "
            "others may look on"
        )
    return family


def block_names(model: Any) -> list[str]:
    """The blocks of a family's denoiser, in forward order, as a recording begins with them."""
    return joint_names(len(lists_of_blocks(model.model.diffusion_model, require_seen(model).blocks)))


@dataclass(frozen=True)
class FamilyPasses:
    """Around one call of a model: SD3's denoiser itself can have nothing around it. `when` says how far the sampling is
    and which rows of the batch are looked at."""

    recorder: AttentionRecorder
    family: Family
    when: Callable[[Mapping[str, Any], int], tuple[float, Rows]]

    def __call__(
        self,
        run: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Any:
        options = transformer_options or {}
        progress, rows = self.when(options, x.shape[0])
        if not rows:
            return run(x, t, c_concat, c_crossattn, control, options, **conditions)
        denoiser = run.class_obj.diffusion_model  # copies of a model have modules of their own
        size = (int(x.shape[-2]), int(x.shape[-1]))
        tokens = tokens_of(denoiser, *size)
        seen = _Seen(self.recorder, self.recorder.watch(progress, rows, size).stretch, rows, tokens.height)
        joint = joint_blocks(denoiser, self.family.blocks, self.family.apart)
        looking = Looking(self.family, tokens, joint, seen, options.get("optimized_attention_override"))
        ours = {**options, "optimized_attention_override": looking}
        blocks = lists_of_blocks(denoiser, self.family.blocks)
        with numbered(blocks, checkpointing=False, given=lent(self.family.lends, ours)):
            return run(x, t, c_concat, c_crossattn, control, ours, **conditions)


@dataclass(frozen=True)
class _Seen:
    recorder: AttentionRecorder
    stretch: int
    rows: Mapping[Any, Sequence[slice]]
    height: int

    @torch.no_grad()
    def __call__(self, block: int, probabilities: torch.Tensor, again: bool) -> None:
        if self.recorder.trouble:
            return
        for conditioning, slices in self.rows.items():
            for rows in slices:
                maps = rearrange(probabilities[rows].mean(dim=1), "b (h w) l -> b l h w", h=self.height)
                self.recorder.add(conditioning, block, self.stretch, maps)
