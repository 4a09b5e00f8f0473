"""Joint attention of a diffusers transformer of Flux.1's kind, computed by hand while somebody watches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .attention import attention_probabilities, merge_heads, split_heads
from .protocol import AttentionProbe


def joint_attentions(transformer: torch.nn.Module) -> dict[str, Any]:
    """The attention modules by name in forward order: double blocks, then single ones."""
    return {name: part for name, part in transformer.named_modules() if name.endswith(".attn")}


@contextmanager
def jointly_probed(layers: Mapping[str, Any], text: int, report: AttentionProbe) -> Iterator[None]:
    """Inside, `report` is told what image tokens look at: (B, heads, image tokens, `text`) of every layer, the share of
    attention that goes to the text. The `text` tokens come first."""
    before = [layer.processor for layer in layers.values()]
    try:
        for index, layer in enumerate(layers.values()):
            layer.set_processor(_Probed(index, text, report))
        yield
    finally:
        for layer, processor in zip(layers.values(), before, strict=True):
            layer.set_processor(processor)


class _Probed:
    """Attention over text and image tokens whose probabilities go to `report` and then on to the values."""

    def __init__(self, layer: int, text: int, report: AttentionProbe) -> None:
        self.layer, self.text, self.report = layer, text, report

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Any:
        if attention_mask is not None:
            raise RuntimeError("the probe watches unmasked attention only")
        query, key, value = _projected(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            query, key = (rotated(x, image_rotary_emb) for x in (query, key))
        probabilities = attention_probabilities(query, key)
        self.report(self.layer, probabilities[:, :, self.text :, : self.text])
        out = merge_heads(probabilities.to(value.dtype) @ value)
        if encoder_hidden_states is None:
            return out
        of_text, of_image = out.split([self.text, out.shape[1] - self.text], dim=1)
        return attn.to_out[1](attn.to_out[0](of_image)), attn.to_add_out(of_text)


def _projected(attn: Any, image: torch.Tensor, text: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values (B, heads, tokens, width) of all tokens, those of the text first."""
    own = [split_heads(project(image), attn.heads) for project in (attn.to_q, attn.to_k, attn.to_v)]
    own[:2] = attn.norm_q(own[0]), attn.norm_k(own[1])
    if text is None:
        return tuple(own)
    added = [split_heads(project(text), attn.heads) for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
    added[:2] = attn.norm_added_q(added[0]), attn.norm_added_k(added[1])
    return tuple(torch.cat(pair, dim=2) for pair in zip(added, own, strict=True))


def rotated(x: torch.Tensor, frequencies: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021) on pairs of neighbours: `x` (B, heads, tokens, width), cosines and
    sines (tokens, width)."""
    cosine, sine = frequencies
    pairs = x.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x.float() * cosine + turned.float() * sine).to(x.dtype)
