"""Text encoders with the stock tokenizer and a small random table: all that tokenizing and embedding look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from contextual_inversion.core.models.protocol import Encoding
from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer

VOCABULARY = 49408


@dataclass
class TableEncoder:
    """A `TextEncoder` whose output is its input; CLIP-L pads with EOT, CLIP-G and CLIP-H with token 0."""

    name: str = "clip_l"
    width: int = 6
    max_length: int = 77
    bos: int = 49406
    eos: int = 49407
    pad: int = 49407
    dtype: torch.dtype = torch.float32
    fingerprint: str = "test"
    weights: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.width)
        self.weights = torch.randn(VOCABULARY, self.width, generator=generator).to(self.dtype)

    def tokenize(self, text: str) -> list[int]:
        return list(tiny_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"])

    def token_text(self, token: int) -> str:
        return str(tiny_tokenizer().convert_ids_to_tokens(token))

    def table(self) -> torch.Tensor:
        return self.weights

    def encode(self, inputs: torch.Tensor, ids: torch.Tensor) -> Encoding:
        return Encoding(inputs)


ENCODERS = [
    TableEncoder(),
    TableEncoder(name="clip_g", width=10, pad=0, dtype=torch.float16),
    TableEncoder(name="clip_h", width=8, pad=0, dtype=torch.bfloat16),
]


@pytest.fixture(params=ENCODERS, ids=lambda encoder: encoder.name)
def encoder(request: pytest.FixtureRequest) -> TableEncoder:
    """One encoder of SD 1.x, of SDXL and of SD 2.x, each with its own padding, width and storage type."""
    return request.param


@pytest.fixture
def clip_l() -> TableEncoder:
    return ENCODERS[0]
