"""The cross-attention of ComfyUI's UNet: finding it, watching it, and what each layer attends to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch
from comfy.ldm.modules.attention import SpatialTransformer, attention_pytorch

from ...core.models.attention import attention_probabilities, merge_heads, split_heads
from ...core.models.observing import observed
from ...core.models.protocol import AttentionObserver, AttentionProbe

BlockKey = tuple[str, int, int]
"""("input" | "middle" | "output", block number, transformer block), as ComfyUI's patches address one attention."""

RECOMPUTING = "contextual_inversion_recomputing"
"""Set in `transformer_options` while a checkpointed block runs again in the backward pass."""


@dataclass(frozen=True)
class CrossAttentionLayer:
    name: str
    """By diffusers' naming where ComfyUI knows it."""
    key: BlockKey
    module: torch.nn.Module
    block: SpatialTransformer
    """What the layer lies in: it takes and gives (B, c, h, w)."""


def diffusers_names(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """ComfyUI's module name -> diffusers' module name, for every module with a weight."""
    names = {}
    for theirs, ours in comfy.utils.unet_to_diffusers(unet_config).items():
        # SDXL's vector embedding has two diffusers names for one module; the pipelines use this one.
        if theirs.endswith(".weight") and not theirs.startswith("class_embedding"):
            names[ours.removesuffix(".weight")] = theirs.removesuffix(".weight")
    return names


def cross_attention_layers(unet: Any, names: Mapping[str, str]) -> list[CrossAttentionLayer]:
    """Every cross-attention in forward order."""
    layers = []
    for block, number, prefix, sequence in _blocks(unet):
        for position, part in enumerate(sequence):
            if not isinstance(part, SpatialTransformer):
                continue
            for index, transformer in enumerate(part.transformer_blocks):
                if transformer.attn2 is None:
                    continue
                ours = f"{prefix}.{position}.transformer_blocks.{index}.attn2"
                name = names.get(f"{ours}.to_q", f"{ours}.to_q").removesuffix(".to_q")
                layers.append(CrossAttentionLayer(name, (block, number, index), transformer.attn2, part))
    return layers


PROJECTIONS = (".to_q", ".to_k", ".to_v", ".to_out.0")


def named_layers(unet: Any, names: Mapping[str, str]) -> dict[str, torch.nn.Module]:
    """Every layer of a UNet with a weight, by diffusers' naming where ComfyUI knows it.

    Raises ValueError where an attention's projections are not all there: whoever looks for them by name would train,
    change or blend some of them only, without a word.
    """
    found = {
        name: part for name, part in unet.named_modules() if isinstance(getattr(part, "weight", None), torch.Tensor)
    }
    blocks = [name for name, part in unet.named_modules() if isinstance(part, SpatialTransformer)]
    missing = [
        ours
        for ours in names
        if ours.endswith(PROJECTIONS) and ours not in found and ours.startswith(tuple(f"{name}." for name in blocks))
    ]
    if missing:
        raise ValueError(
            f"this model has no layer {missing[0]} of its own"
            + (f", nor {len(missing) - 1} others" if len(missing) > 1 else "")
            + ": this ComfyUI, or a node, has joined the projections of its attention, or gave them other names. Load "
            "the model without joined (combined, fused) weights"
        )
    return {names.get(name, name): part for name, part in found.items()}


def _blocks(unet: Any) -> Iterator[tuple[str, int, str, Any]]:
    for number, sequence in enumerate(unet.input_blocks):
        yield "input", number, f"input_blocks.{number}", sequence
    if unet.middle_block is not None:
        yield "middle", 0, "middle_block", unet.middle_block
    for number, sequence in enumerate(unet.output_blocks):
        yield "output", number, f"output_blocks.{number}", sequence


LAYERS = "contextual_inversion_layers"
"""In `transformer_options`: (B, layers, L, D), what each cross-attention attends to (XTI)."""


@dataclass(frozen=True)
class OwnContext:
    """An `attn2` patch: in place of the common context each layer takes its own out of `LAYERS`, where there is one.

    Tokens beyond L, which another node has appended to the common context, stay as they are.
    """

    index: Mapping[BlockKey, int]

    def __call__(
        self, query: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layers, block = options.get(LAYERS), options.get("block")
        if layers is None or block is None:
            return query, context, value
        own = layers[:, self.index[(*block, options.get("block_index", 0))]].to(context)
        return query, self._instead(context, own), self._instead(value, own)

    def _instead(self, context: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        rest = context[:, own.shape[1] :]
        return torch.cat([own, rest], dim=1) if rest.shape[1] else own


def own_context(layers: Sequence[CrossAttentionLayer]) -> OwnContext:
    """The patch for a UNet with these cross-attention layers."""
    return OwnContext({layer.key: index for index, layer in enumerate(layers)})


def with_contexts(
    options: Mapping[str, Any], layers: Sequence[CrossAttentionLayer], contexts: torch.Tensor
) -> dict[str, Any]:
    """`transformer_options` with a context for every layer, `contexts` (layers, B, L, D); what came in is not changed.

    Raises ValueError where there are not as many as cross-attentions.
    """
    if len(contexts) != len(layers):
        raise ValueError(f"this UNet has {len(layers)} cross-attention layers, the conditioning has {len(contexts)}")
    patches = options.get("patches", {})
    # Before other nodes' patches, so that these see what the layer will attend to.
    ours = [own_context(layers), *patches.get("attn2_patch", [])]
    return {**options, "patches": {**patches, "attn2_patch": ours}, LAYERS: contexts.transpose(0, 1)}


def observed_layers(layers: Sequence[CrossAttentionLayer], observer: AttentionObserver) -> AbstractContextManager[None]:
    """Every cross-attention is shown to `observer` inside; whatever computes it goes on computing it."""
    return observed([layer.module for layer in layers], observer, [layer.block for layer in layers])


@dataclass(frozen=True)
class ProbedAttention:
    """An `attn2` replacement: ordinary attention whose probabilities go to `probe` and then on to the values."""

    layer: int
    probe: AttentionProbe

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Mapping[str, Any]
    ) -> torch.Tensor:
        query, key, value = (split_heads(x, options["n_heads"]) for x in (query, key, value))
        probabilities = attention_probabilities(query, key)
        # The backward pass runs a checkpointed block again; what it sees there has been reported already.
        if not options.get(RECOMPUTING, False):
            self.probe(self.layer, probabilities)
        return merge_heads(probabilities.to(value.dtype) @ value)


def with_probe(
    options: Mapping[str, Any], layers: Sequence[CrossAttentionLayer], probe: AttentionProbe
) -> dict[str, Any]:
    """`transformer_options` with every cross-attention watched; what came in is not changed.

    Raises:
        RuntimeError: a cross-attention has a replacement already (IP-Adapter and the like). There is room for one, and
            standing in for theirs would change what the model computes.
    """
    replace = options.get("patches_replace", {})
    taken = replace.get("attn2", {})
    clashes = [layer.name for layer in layers if layer.key in taken or layer.key[:2] in taken]
    if clashes:
        raise RuntimeError(
            f"another node replaces the cross-attention at {clashes[0]}"
            + (f" and {len(clashes) - 1} more" if len(clashes) > 1 else "")
            + "; connect the model before that node, or train without the attention loss"
        )
    probes = {layer.key: ProbedAttention(index, probe) for index, layer in enumerate(layers)}
    return {**options, "patches_replace": {**replace, "attn2": {**taken, **probes}}}


DIFFERENTIABLE = {f"attention_{name}" for name in ("basic", "pytorch", "split", "sub_quad", "xformers")}
"""ComfyUI's attention back ends that have a backward pass; Sage, Flash and quantised attention have none."""


def with_gradients(options: Mapping[str, Any]) -> dict[str, Any]:
    """`transformer_options` with PyTorch's attention wherever the chosen one lets no gradient through; what came in is
    not changed. Without it a training would go on without an error, and without most of its gradient."""
    previous = options.get("optimized_attention_override")

    def attention(function: Any, query: torch.Tensor, *rest: Any, **keywords: Any) -> torch.Tensor:
        if function.__name__ not in DIFFERENTIABLE:
            function = attention_pytorch
        if previous is not None:
            out = previous(function, query, *rest, **keywords)
            if out.requires_grad or not any(x.requires_grad for x in (query, *rest[:2])):
                return out
        return function(query, *rest, **keywords)

    return {**options, "optimized_attention_override": attention}
