"""A CLIP text encoder of transformers as a function of its input embeddings."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from .protocol import Encoding, fingerprint


class DiffusersTextEncoder:
    """`TextEncoder` on transformers' `CLIPTextModel` or `CLIPTextModelWithProjection` and its tokenizer.

    `penultimate` takes the layer before the last without the final norm (SDXL); otherwise it is the last layer after
    it (SD 1, and SD 2, whose last layer diffusers leaves out). `pooled` adds the projected output at the first EOT.
    """

    def __init__(
        self, name: str, module: torch.nn.Module, tokenizer: Any, *, penultimate: bool = False, pooled: bool = False
    ) -> None:
        self.name = name
        self.module = module
        self.tokenizer = tokenizer
        self.penultimate = penultimate
        self.pooled = pooled
        # transformers 5 has no `text_model` between CLIPTextModel and its parts, the one with a projection does.
        self._transformer: Any = getattr(module, "text_model", module)
        self.width = int(self.table().shape[1])
        self.max_length = int(self._transformer.embeddings.position_embedding.weight.shape[0])
        self.bos = int(tokenizer.bos_token_id)
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint({"table": self.table()}, name=self.name, max_length=self.max_length)

    @property
    def output(self) -> str:
        depth = len(self._transformer.encoder.layers)
        return f"layer {depth - 1}, raw" if self.penultimate else f"layer {depth}, normed"

    def tokenize(self, text: str) -> list[int]:
        """As the pipelines do, which take SD 2's and SDXL's padding token "!" for itself even after a word (id 0)."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def token_text(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(int(token)))

    def table(self) -> torch.Tensor:
        return self._transformer.embeddings.token_embedding.weight

    def linear_layers(self) -> dict[str, torch.nn.Module]:
        return {name: part for name, part in self.weight_layers().items() if isinstance(part, torch.nn.Linear)}

    def weight_layers(self) -> dict[str, torch.nn.Module]:
        modules = self._transformer.named_modules(prefix="text_model")
        return {name: part for name, part in modules if isinstance(part, torch.nn.Linear | torch.nn.LayerNorm)}

    @property
    def layers(self) -> list[torch.nn.Module]:
        return list(self._transformer.encoder.layers)

    def encode(self, inputs: torch.Tensor, ids: torch.Tensor) -> Encoding:
        """`TextEncoder.encode`. transformers takes ids only, so its forward is repeated here from the embeddings on."""
        model = self._transformer
        weight = model.embeddings.position_embedding.weight
        hidden = inputs.to(weight.device, weight.dtype) + weight[: inputs.shape[1]]
        mask = create_causal_mask(config=model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
        layers = self.layers
        body, last = (layers[:-1], layers[-1:]) if self.penultimate else (layers, [])
        for layer in body:
            hidden = layer(hidden, mask, is_causal=True)
        tokens = hidden if self.penultimate else model.final_layer_norm(hidden)
        return Encoding(tokens.float(), self._pool(hidden, last, mask, ids) if self.pooled else None)

    def _pool(
        self, hidden: torch.Tensor, layers: list[Any], mask: torch.Tensor | None, ids: torch.Tensor
    ) -> torch.Tensor:
        for layer in layers:
            hidden = layer(hidden, mask, is_causal=True)
        # By id and not by the largest id: padding may repeat EOT, and argmax gives its first position.
        first_eot = (ids.to(hidden.device) == self.eos).int().argmax(dim=-1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        pooled = self._transformer.final_layer_norm(hidden)[rows, first_eot]
        return self.module.text_projection(pooled).float()  # type: ignore[operator]
