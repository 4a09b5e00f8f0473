"""Cross-attention of a diffusers UNet, computed by hand while somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .attention import attention_probabilities, merge_heads, split_heads
from .protocol import AttentionProbe

PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor")
"""Processors that compute ordinary attention, so that ours may stand in for them."""

_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


def cross_attention_modules(unet: torch.nn.Module) -> dict[str, Any]:
    """The cross-attention modules by name in forward order: down, middle, up (diffusers registers the middle last)."""
    found = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    return dict(sorted(found, key=lambda item: _ORDER[item[0].split(".")[0]]))


class ProbedProcessor:
    """Ordinary attention whose probabilities go to `report` and then on to the values."""

    def __init__(self, layer: int, report: AttentionProbe | None) -> None:
        self.layer = layer
        self.report = report

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        if encoder_hidden_states is None or attention_mask is not None or hidden_states.ndim != 3:
            raise RuntimeError("the probe watches unmasked cross-attention over (B, N, C) features only")
        context = attn.norm_encoder_hidden_states(encoder_hidden_states) if attn.norm_cross else encoder_hidden_states
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key, value = (split_heads(project(context), attn.heads) for project in (attn.to_k, attn.to_v))
        if attn.upcast_attention:
            query, key = query.float(), key.float()
        probabilities = attention_probabilities(query, key, attn.scale)
        if self.report is not None:
            self.report(self.layer, probabilities)
        out = merge_heads(probabilities.to(value.dtype) @ value)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


@contextmanager
def probed(layers: Sequence[Any], report: AttentionProbe | None) -> Iterator[None]:
    """Our processors in `layers` inside, those that were there on exit. `report=None` computes alike and says nothing.

    Raises:
        RuntimeError: a layer has a processor of somebody else (IP-Adapter, Custom Diffusion); standing in for it would
            change what the model computes.
    """
    before = [layer.processor for layer in layers]
    foreign = {type(processor).__name__ for processor in before} - {*PLAIN_PROCESSORS, ProbedProcessor.__name__}
    if foreign:
        raise RuntimeError(f"cross-attention cannot be watched through the processors {sorted(foreign)}")
    try:
        for index, layer in enumerate(layers):
            layer.set_processor(ProbedProcessor(index, report))
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


def checkpoint_probed(layers: Sequence[Any], run: Callable[..., Any], *arguments: Any) -> Any:
    """Gradient checkpointing of one block of a probed pass.

    The backward pass runs the block again, long after the processors were put back: it needs ours once more, or it
    would not compute what was saved, but it must not report a second time.
    """
    watched = isinstance(layers[0].processor, ProbedProcessor) if layers else False
    again = False

    def block(*inputs: Any) -> Any:
        nonlocal again
        if not (watched and again):
            again = True
            return run(*inputs)
        with probed(layers, None):
            return run(*inputs)

    return torch.utils.checkpoint.checkpoint(block, *arguments, use_reentrant=False)
