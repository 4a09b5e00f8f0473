"""Concepts of every family, and files with any header one likes."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save

from contextual_inversion.core.concept import Concept

WIDTHS = {
    "SD 1.x": {"clip_l": 768},
    "SD 2.x": {"clip_h": 1024},
    "SDXL": {"clip_l": 768, "clip_g": 1280},
    "bundled": {"clip_l": 128},
}


def concept(widths=None, *, rows=2, name="dog", lora=True, layers=3, seed=0) -> Concept:
    """A random concept with everything that a bundle can hold."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    widths = widths or WIDTHS["SDXL"]
    down = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    low_rank = {
        f"{down}.lora_down.weight": randn(4, 32),
        f"{down}.lora_up.weight": randn(16, 4).half(),
        f"{down}.alpha": torch.tensor(4.0),
    }
    return Concept(
        name=name,
        class_word="puppy",
        vectors={encoder: randn(rows, width) for encoder, width in widths.items()},
        layer_vectors={encoder: randn(layers, rows, width) for encoder, width in widths.items()} if layers else None,
        lora=low_rank if lora else None,
        hard_token="hound",
        provenance={"steps": 300, "model": "a1b2", "losses": [0.5, 0.25], "recipe": {"core": True, "note": "é"}},
    )


def raw_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, truthful or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture
def embedding_bytes() -> bytes:
    return save({"clip_l": torch.randn(1, 16)}, {"format": "pt"})
