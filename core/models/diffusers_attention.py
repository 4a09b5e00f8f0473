"""Cross-attention of a diffusers UNet, computed by hand while somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange

from .attention import attention_probabilities, merge_heads, split_heads
from .protocol import AttentionProbe
from .replay import replayed

PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "FlexibleProcessor")
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


@contextmanager
def layered(attentions: Sequence[Any], contexts: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the one context (B, layers * L, D) to give to the UNet: inside, every cross-attention takes its own L
    tokens of it. `contexts` (layers, B, L, D).

    They travel in the UNet's input, and not in the hooks, so that a checkpointed block that runs again finds them.
    Raises ValueError where there are not as many contexts as cross-attentions.
    """
    if len(contexts) != len(attentions):
        raise ValueError(
            f"this UNet has {len(attentions)} cross-attention layers, the conditioning has {len(contexts)}"
        )
    with _taking_their_own(attentions):
        yield rearrange(contexts, "layers b l d -> b (layers l) d")


@contextmanager
def _taking_their_own(attentions: Sequence[Any]) -> Iterator[None]:
    hooks = [_TakeOwn(index, len(attentions)) for index in range(len(attentions))]
    handles = [
        attention.register_forward_pre_hook(hook, with_kwargs=True)
        for attention, hook in zip(attentions, hooks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _TakeOwn:
    """A hook: hands the layer its own part of a context that holds every layer's."""

    def __init__(self, layer: int, layers: int) -> None:
        self.layer, self.layers = layer, layers

    def __call__(self, module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        context = keywords["encoder_hidden_states"]
        return arguments, {**keywords, "encoder_hidden_states": context.chunk(self.layers, dim=1)[self.layer]}


def checkpoint_probed(layers: Sequence[Any], run: Callable[..., Any], *arguments: Any) -> Any:
    """Gradient checkpointing of one block of a pass that is probed or has a context for every layer.

    The backward pass runs the block again, long after processors and hooks were put back: it needs ours once more, or
    it would not compute what was saved, but it must not report a second time.
    """
    parts = run.modules() if isinstance(run, torch.nn.Module) else ()
    run = replayed(run, [(part, "processor") for part in parts if hasattr(part, "processor")])
    watched = isinstance(layers[0].processor, ProbedProcessor) if layers else False
    own = any(isinstance(hook, _TakeOwn) for hook in layers[0]._forward_pre_hooks.values()) if layers else False
    again = False

    def block(*inputs: Any) -> Any:
        nonlocal again
        if not again:
            again = True
            return run(*inputs)
        with ExitStack() as stack:
            if own:
                stack.enter_context(_taking_their_own(layers))
            if watched:
                stack.enter_context(probed(layers, None))
            return run(*inputs)

    return torch.utils.checkpoint.checkpoint(block, *arguments, use_reentrant=False)
