"""A text encoder of a ComfyUI CLIP as a function of its input embeddings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import MethodType
from typing import Any

import comfy.clip_model
import comfy.sd1_clip
import torch
from comfy.text_encoders.sd3_clip import SD3ClipModel

from ...core.models.low_rank import hooked, is_linear
from ...core.models.protocol import Encoding, fingerprint
from ...core.models.replacing import instead
from .cancelling import hear_cancel
from .families.encoders import family_widths
from .weights import base_weight

ENCODERS = ("clip_l", "clip_g", "clip_h")
"""ComfyUI's names, in the order in which SDXL joins them; also the keys of embedding files."""
LINEAR = (*(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")), "mlp.fc1", "mlp.fc2")
"""The linear layers of one transformer layer."""


class ComfyTextEncoder:
    """`TextEncoder` on one `SDClipModel`. `layer` is what CLIPSetLastLayer chose, None for the model's own. What it
    says lies on `device`, where the UNet is: ComfyUI may keep text encoders on another one.

    Equals what `CLIP.encode_from_tokens` gives for a prompt of weight 1, bit for bit.
    """

    def __init__(
        self,
        name: str,
        patcher: Any,
        tokenizer: Any,
        *,
        layer: int | None,
        pooled: bool,
        ready: Callable[[], None],
        device: torch.device,
    ) -> None:
        self.name = name
        self.patcher = patcher
        self.clip = getattr(patcher.model, name)
        if self.clip.enable_attention_masks or self.clip.zero_out_masked:
            raise ValueError(f"{name} hides its padding, which none of SD 1, SD 2 and SDXL does; it is not supported")
        self.tokenizer = tokenizer
        self.layer = layer
        self.pooled = pooled
        self._ready = ready
        self._device = device
        self.width = int(self.table().shape[1])
        self.max_length = int(self._text_model.embeddings.position_embedding.weight.shape[0])
        self.bos = int(tokenizer.start_token)
        self.eos = int(tokenizer.end_token)
        self.pad = int(tokenizer.pad_token)

    @cached_property
    def fingerprint(self) -> str:
        key = f"{self.name}.transformer.text_model.embeddings.token_embedding.weight"
        return fingerprint({"table": base_weight(self.patcher, key)}, name=self.name, max_length=self.max_length)

    @property
    def output(self) -> str:
        layers, at = self.clip.num_layers, self._intermediate()
        if at is None:
            return f"layer {layers}, normed"
        return f"layer {at % layers + 1}, {'normed' if self.clip.layer_norm_hidden_state else 'raw'}"

    @property
    def _text_model(self) -> Any:
        return self.clip.transformer.text_model

    @property
    def layers(self) -> list[torch.nn.Module]:
        return list(self._text_model.encoder.layers)

    def tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def token_text(self, token: int) -> str:
        return str(self.tokenizer.inv_vocab[int(token)])

    def table(self) -> torch.Tensor:
        return self._text_model.embeddings.token_embedding.weight

    def linear_layers(self) -> dict[str, torch.nn.Module]:
        return {name: part for name, part in self.weight_layers().items() if is_linear(part)}

    def weight_layers(self) -> dict[str, torch.nn.Module]:
        modules = self._text_model.named_modules(prefix="text_model")
        found = {name: part for name, part in modules if is_linear(part) or isinstance(part, torch.nn.LayerNorm)}
        stems = [f"text_model.encoder.layers.{index}." for index in range(self.clip.num_layers)]
        missing = [stem + part for stem in stems for part in LINEAR if stem + part not in found]
        if missing:
            raise ValueError(
                f"{self.name} has no layer {missing[0]} of its own: this ComfyUI, or a node, has joined the "
                "projections of its attention, or gave them other names. Load the CLIP without joined weights"
            )
        return found

    def encode(self, inputs: torch.Tensor, ids: torch.Tensor) -> Encoding:
        hear_cancel()
        self._ready()
        device = self.patcher.load_device
        length, intermediate = inputs.shape[1], self._intermediate()
        # ComfyUI adds all position embeddings at once; what is behind changes nothing before it, the model is causal.
        embeds = torch.nn.functional.pad(inputs.to(device, torch.float32), (0, 0, 0, self.max_length - length))
        # With `num_tokens` the model does not look for EOT, which would need the ids on the host.
        last, hidden, _ = self._text_model(
            None,
            None,
            embeds=embeds,
            num_tokens=[1] * embeds.shape[0],
            intermediate_output=intermediate,
            final_layer_norm_intermediate=self.clip.layer_norm_hidden_state,
            dtype=torch.float32,
        )
        tokens = (last if intermediate is None else hidden)[:, :length]
        pooled = self._pool(last, ids).to(self._device) if self.pooled else None
        return Encoding(tokens.to(self._device, torch.float32), pooled)

    def _intermediate(self) -> int | None:
        """The layer that `encode_from_tokens` would read, None for the last; worked out without setting it."""
        layer, default = self.clip.options_default[:2]
        if self.layer is not None:
            layer, default = ("last", None) if abs(self.layer) > self.clip.num_layers else ("hidden", self.layer)
        return None if layer == "last" else int(default)

    def _pool(self, last: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        first_eot = (ids.to(last.device) == self.eos).int().argmax(dim=-1)
        pooled = last[torch.arange(last.shape[0], device=last.device), first_eot]
        return self.clip.transformer.text_projection(pooled).float()


def text_encoders(
    patcher: Any,
    tokenizer: Any,
    *,
    layer: int | None = None,
    pooled: str | None = None,
    ready: Callable[[], None] = lambda: None,
    device: torch.device | None = None,
) -> list[ComfyTextEncoder]:
    """The encoders of a CLIP's model, in the order of the UNet's context; `pooled` names the one that also pools, and
    `ready` loads what is not loaded already. What they say lies on `device`, None: where they are.

    Raises ValueError where a CLIP has none, or has encoders of another kind beside them (SD3, Flux).
    """
    names = encoder_names(patcher.model)
    options = {"layer": layer, "ready": ready, "device": patcher.load_device if device is None else device}
    return [
        ComfyTextEncoder(name, patcher, getattr(tokenizer, name), pooled=name == pooled, **options) for name in names
    ]


def is_stable_diffusion(model: Any) -> bool:
    """Whether a CLIP's model has CLIP text encoders and no others beside them, as SD3 and Flux have. SD3 without T5 has
    SDXL's two, and what they say is read otherwise."""
    if isinstance(model, SD3ClipModel):
        return False
    names = [name for name in ENCODERS if isinstance(getattr(model, name, None), comfy.sd1_clip.SDClipModel)]
    return bool(names) and all(name in names or not any(part.parameters()) for name, part in model.named_children())


def encoder_names(model: Any) -> list[str]:
    """The text encoders in a CLIP's model. Raises ValueError where it has none, or others beside them (SD3, Flux)."""
    names = [name for name in ENCODERS if isinstance(getattr(model, name, None), comfy.sd1_clip.SDClipModel)]
    if not is_stable_diffusion(model):
        raise ValueError(
            f"{type(model).__name__} is not the text encoder of SD 1, SD 2 or SDXL; use the CLIP that comes with the "
            "model's checkpoint"
        )
    return names


def text_widths(clip: Any) -> dict[str, int]:
    """Width of the input embeddings of each text encoder of a CLIP. Raises ValueError where it is of no kind that is
    known."""
    model = clip.patcher.model
    if not is_stable_diffusion(model):
        return family_widths(clip)
    tables = {
        name: getattr(model, name).transformer.text_model.embeddings.token_embedding.weight
        for name in encoder_names(model)
    }
    return {name: int(table.shape[1]) for name, table in tables.items()}


KNOWN = ["self", "x", "mask", "optimized_attention"]
"""How ComfyUI 0.33 calls a layer of CLIP."""


@contextmanager
def differentiable_layers(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Text encoders that autograd can go through, in these instances only; results are bit-equal to the stock ones.

    ComfyUI's layers add in place to what the layer norm before has to keep for the backward pass. A layer that is
    called as in 0.33 adds to a new tensor instead. Where a newer ComfyUI calls it in another way its own code stays,
    and each norm is given a copy to keep: the same numbers, at the same cost.
    """
    parts = [part for module in modules for part in module.modules()]
    layers = [part for part in parts if type(part) is comfy.clip_model.CLIPLayer]
    known = list(inspect.signature(comfy.clip_model.CLIPLayer.forward).parameters) == KNOWN
    with ExitStack() as stack:
        for layer in layers if known else []:
            stack.enter_context(instead(layer, "forward", MethodType(_out_of_place, layer)))
        for norm in [] if known else [part for part in parts if isinstance(part, torch.nn.LayerNorm)]:
            stack.enter_context(hooked(norm, _on_a_copy, before=True))
        yield


def _out_of_place(layer: Any, x: torch.Tensor, mask: Any = None, optimized_attention: Any = None) -> torch.Tensor:
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))


def _on_a_copy(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    return (inputs[0].clone(), *inputs[1:]) if torch.is_grad_enabled() and inputs else None
