"""Sampling with a word that has a vector for every cross-attention layer (XTI), in any stock sampler.

The text encoder puts what each layer attends to beside the ordinary conditioning, under a key of our own; the model
hands it to the layers. A model that was not told to ignores it and sees the ordinary conditioning, with the word's mean
vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.patcher_extension
import torch
from comfy.conds import CONDRegular

from ...core.concept import Concept
from .attention import LAYERS, cross_attention_layers, own_context
from .fitting import require_layers

DIFFUSION_MODEL = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL


def reading_layers(model: Any, concept: Concept) -> Any:
    """A clone of `model` whose cross-attention layers look at what the conditioning holds for each of them.

    Raises ValueError where the model has another number of layers than the concept has vectors for.
    """
    layers = cross_attention_layers(model.model.diffusion_model, {})
    require_layers(concept, len(layers))
    clone = model.clone()
    if LAYERS not in clone.wrappers.get(DIFFUSION_MODEL, {}):
        clone.add_wrapper_with_key(DIFFUSION_MODEL, LAYERS, _hand_over)
        clone.set_model_attn2_patch(own_context(layers))
    return clone


def _hand_over(
    run: Any,
    x: Any,
    timesteps: Any,
    context: Any = None,
    y: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> Any:
    """From the conditioning to where the attention patch finds it."""
    options = dict(transformer_options or {})
    layers = conditions.pop(LAYERS, None)
    if layers is not None:
        options[LAYERS] = layers
    return run(x, timesteps, context, y, control, options, **conditions)


def writing_layers(clip: Any, concept: Concept) -> Any:
    """`clip`, a clone that knows the concept already, so that its conditioning holds what each layer attends to."""
    if not isinstance(clip, _WritesLayers):
        clip.__class__ = type(f"Layered{type(clip).__name__}", (_WritesLayers, type(clip)), {})
        clip.layered = ()
    clip.layered = (*clip.layered, concept)
    return clip


class _WritesLayers:
    """Goes before CLIP. Every conditioning gets its layers, so that positive and negative run in one batch."""

    layered: tuple[Concept, ...]

    def clone(self, *arguments: Any, **keywords: Any) -> Any:
        clone = super().clone(*arguments, **keywords)
        clone.__class__, clone.layered = type(self), self.layered
        return clone

    def encode_from_tokens_scheduled(self, tokens: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.use_clip_schedule and self.patcher.forced_hooks is not None:
            raise ValueError("A word with a vector for every layer cannot be encoded with a schedule of CLIP hooks.")
        return super().encode_from_tokens_scheduled(tokens, *arguments, **keywords)

    def encode_from_tokens(self, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        common = super().encode_from_tokens(tokens, return_pooled, return_dict)
        if not return_dict:
            return common
        count = len(next(iter(self.layered[0].layer_vectors.values())))
        own = tokens_of_layers(tokens, self.layered, count)
        if own is None:
            layers = common["cond"].expand(count, -1, -1)[None]
        else:
            everything = super().encode_from_tokens(own, False, True)["cond"]
            layers = everything.unflatten(1, (count, -1))
        common["model_conds"] = {**common.get("model_conds", {}), LAYERS: CONDRegular(layers.contiguous())}
        return common


def tokens_of_layers(tokens: Mapping[str, Any], concepts: tuple[Concept, ...], count: int) -> dict[str, Any] | None:
    """The prompt once for each of `count` layers, one after another, with that layer's vectors; None where none of
    `concepts` is in it. All are then encoded as one batch."""
    found = False
    every: dict[str, Any] = {}
    for key, sections in tokens.items():
        encoder = key if key.startswith("clip_") else f"clip_{key}"
        known = [
            (concept.vectors[encoder], concept.layer_vectors[encoder])
            for concept in concepts
            if encoder in concept.vectors
        ]
        places = [[_place(token[0], known) for token in section] for section in sections]
        found |= any(place is not None for section in places for place in section)
        every[key] = [
            [
                token if place is None else (place[layer], *token[1:])
                for token, place in zip(section, spots, strict=True)
            ]
            for layer in range(count)
            for section, spots in zip(sections, places, strict=True)
        ]
    return every if found else None


def _place(token: Any, known: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor | None:
    """(layers, d): what each layer sees where `token` is a concept's mean vector, else None."""
    if not isinstance(token, torch.Tensor):
        return None
    for vectors, layers in known:
        for row, own in zip(vectors, layers.unbind(1), strict=True):
            if row.shape == token.shape and torch.equal(row.to(token), token):
                return own
    return None
