"""The seam between this pack and any text-to-image diffusion model.

A trainer, a regularizer and a loss see a model only through `TextToImageModel` and `TextEncoder`. There are two
implementations: `core.models.diffusers_adapter` and `nodes.comfy.model`. With the same weights and inputs they give
the same loss and gradient to 1e-4; nothing above this seam may ask which one it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from ..maths.context import attention_token_means

AttentionProbe = Callable[[int, torch.Tensor], None]
"""Receives `(layer, probabilities)` of every cross-attention layer during `predict`.

`layer` counts cross-attention layers in forward order from 0; `probabilities` is `(B, H, N, L)`, softmax over the L
context tokens, with its autograd graph attached when gradients are on.
"""


@runtime_checkable
class AttentionObserver(Protocol):
    """A probe that looks on: the model computes as it would without it, and the result is the same bit for bit.

    In the place of an `AttentionProbe` it is shown queries and keys instead of receiving probabilities, so it need not
    compute what it does not want, for instance the unconditional half of a batch.
    """

    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Queries (B, H, N, dh) and keys (B, H, L, dh) of cross-attention layer `layer`, counted in forward order.

        `scale` is 1 / sqrt(dh) unless given; `size` (h, w) with h w = N where the adapter knows it.
        """


@runtime_checkable
class JointObserver(Protocol):
    """An `AttentionObserver` of models too in which text and image are one sequence: what a query gives to the text is
    no softmax over the text alone, so it is told."""

    def observe_shares(self, layer: int, shares: torch.Tensor, size: tuple[int, int]) -> None:
        """What the N = h w image tokens of `size` (h, w) give to each text token, (B, H, N, L), in one layer. What is
        missing to 1 they give to the image."""


AttentionWatcher = AttentionProbe | AttentionObserver
"""Who may watch a UNet pass. A probe that is an `AttentionObserver` is shown queries and keys, any other is called with
probabilities."""


@dataclass(frozen=True)
class Encoding:
    """What one text encoder says about a batch of prompts.

    `tokens` (B, L, d) is what the UNet attends to (SD 1/2: last layer after the final norm; SDXL: the penultimate layer
    without it). `pooled` (B, p) is the pooled output where the model uses one, else None. `layers` (layers, B, L, d) is
    what each cross-attention layer attends to in place of `tokens`, where a word has a vector for each of them (XTI).
    `raw` holds for each prompt what else an adapter wants to find again in `conditioning`, in a form of its own.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    layers: torch.Tensor | None = None
    raw: tuple[Any, ...] = ()

    def expand(self, batch: int) -> Encoding:
        """Repeat a batch of one to `batch` rows without copying."""
        pooled = None if self.pooled is None else self.pooled.expand(batch, -1)
        layers = None if self.layers is None else self.layers.expand(-1, batch, -1, -1)
        return Encoding(self.tokens.expand(batch, -1, -1), pooled, layers, self.raw * batch)

    @staticmethod
    def beside(parts: Sequence[Encoding]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`tokens` and `layers` of several encoders, joined along the features; `layers` is None where none has it."""
        tokens = torch.cat([part.tokens for part in parts], dim=-1)
        count = next((len(part.layers) for part in parts if part.layers is not None), None)
        if count is None:
            return tokens, None
        wide = [part.tokens.expand(count, -1, -1, -1) if part.layers is None else part.layers for part in parts]
        return tokens, torch.cat(wide, dim=-1)


@dataclass(frozen=True)
class Conditioning:
    """What `predict` needs beside latents and timesteps: `context` (B, L, D) and, for SDXL, the vector `y` (B, A).

    `layers` (layers, B, L, D) stands in for `context`, one for each cross-attention layer in forward order (XTI).
    """

    context: torch.Tensor
    y: torch.Tensor | None = None
    layers: torch.Tensor | None = None

    def expand(self, batch: int) -> Conditioning:
        """Repeat a batch of one to `batch` rows without copying; a full batch stays as it is."""
        y = None if self.y is None else self.y.expand(batch, -1)
        layers = None if self.layers is None else self.layers.expand(-1, batch, -1, -1)
        return Conditioning(self.context.expand(batch, -1, -1), y, layers)

    def row(self, index: int) -> Conditioning:
        """A batch of one."""
        y = None if self.y is None else self.y[index : index + 1]
        layers = None if self.layers is None else self.layers[:, index : index + 1]
        return Conditioning(self.context[index : index + 1], y, layers)

    def rows(self, chosen: Sequence[int]) -> Conditioning:
        """These rows in this order, some of them several times: what was encoded once, and its gradients add up."""
        if len(set(chosen)) == 1:
            return self.row(chosen[0]).expand(len(chosen))
        if list(chosen) == list(range(len(self.context))):
            return self
        return self.cat([self.row(index) for index in chosen])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch axis. Where only some have `layers`, the others' layers all see their context."""
        if type(parts[0]) is not Conditioning:
            return type(parts[0]).cat(parts)
        ys = [part.y for part in parts]
        y = None if ys[0] is None else torch.cat(ys)  # type: ignore[arg-type]
        count = next((len(part.layers) for part in parts if part.layers is not None), None)
        layers = None
        if count is not None:
            wide = [part.context.expand(count, -1, -1, -1) if part.layers is None else part.layers for part in parts]
            layers = torch.cat(wide, dim=1)
        return Conditioning(torch.cat([part.context for part in parts]), y, layers)


@dataclass(frozen=True)
class ImageSize:
    """SDXL's size conditioning, in pixels; ignored by SD 1 and 2."""

    height: int
    width: int
    crop_top: int = 0
    crop_left: int = 0
    target_height: int | None = None
    target_width: int | None = None


@dataclass(frozen=True)
class NoiseSchedule:
    """`alpha_bar` (T,) float64 on the CPU, and what the model predicts: "epsilon", "v_prediction", "sample" or "flow"
    (METHODS.md 8)."""

    alpha_bar: torch.Tensor
    prediction_type: str

    @property
    def steps(self) -> int:
        return int(self.alpha_bar.shape[0])


@runtime_checkable
class TextEncoder(Protocol):
    """One CLIP-like text encoder, seen as a function of its *input embeddings* so that a new word can be learned."""

    name: str
    """Key in embedding files: "clip_l", "clip_g", "clip_h" (SD 2)."""
    width: int
    """d, the size of an input embedding."""
    max_length: int
    """Positions of the encoder, special tokens included (77)."""
    bos: int
    eos: int
    pad: int
    fingerprint: str
    """Hash that changes when the token table changes; contextualizers and encoders are tied to it."""
    output: str
    """What `encode` gives: how many layers it runs, and whether the final norm, as "layer 11, raw"."""

    def tokenize(self, text: str) -> list[int]:
        """BPE ids of `text` without special tokens, not truncated."""

    def token_text(self, token: int) -> str:
        """The piece of text of one id, e.g. "dog</w>"."""

    def table(self) -> torch.Tensor:
        """The token table (V, d), not copied, never trained."""

    def encode(self, inputs: torch.Tensor, ids: torch.Tensor) -> Encoding:
        """Run the encoder on input embeddings `inputs` (B, L, d), differentiably. What it says lies on the model's
        device, wherever the encoder itself, its table and `inputs` lie.

        `ids` (B, L) are the token ids (a concept's position holds any ordinary id): used only to find the first EOT for
        the pooled output. Position embeddings are added inside.
        """

    def linear_layers(self) -> Mapping[str, torch.nn.Module]:
        """The linear layers of its transformer by transformers' name ("text_model.encoder.layers.0.mlp.fc1"), for
        low-rank deltas."""

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        """These and its layer norms ("text_model.final_layer_norm"), for full-rank deltas. No embeddings: a word is
        learned beside them, and every other word's row is to stay."""


@runtime_checkable
class TextToImageModel(Protocol):
    """A latent diffusion model with cross-attention, its text encoders and its autoencoder. Everything is frozen."""

    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    """What the UNet computes in."""
    text_encoders: Mapping[str, TextEncoder]
    """In the order in which the UNet's context concatenates them."""
    schedule: NoiseSchedule
    latent_channels: int
    latent_factor: int
    """Pixels per latent cell (8)."""

    def to_latents(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] to *scaled* latents (B, C, H/f, W/f) as the UNet sees them, no gradient.

        With a generator a sample of the autoencoder's posterior (METHODS.md 1.4 step 2a), otherwise its mean. Each
        picture is looked at alone, so that its latents are the same to the last digit whatever lies beside it.
        """

    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents to images in [-1, 1], no gradient."""

    def conditioning(self, encodings: Mapping[str, Encoding], size: ImageSize) -> Conditioning:
        """Join what the text encoders said. Differentiable."""

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        """The UNet's raw output (epsilon, v or x0 as `schedule.prediction_type` says) for noisy latents.

        `latents` (B, C, h, w) are the DDPM z_t (variance preserving), `timesteps` (B,) integers in [0, T).
        Differentiable with respect to `latents` and `conditioning`. Where `conditioning` has `layers`, each
        cross-attention layer attends to its own and not to `context`. A `probe` is told of every cross-attention layer,
        once, also where a block is computed again in the backward pass; with an `AttentionObserver` the result is the
        same bit for bit. Hooks on the modules that `linear_layers` and `weight_layers` name act in it.
        """

    def features(
        self, latents: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> list[torch.Tensor]:
        """What the UNet's encoder half sees in noisy latents (METHODS.md 3.2): its down-path residuals in forward order
        and its middle, (B, c, h, w) float32 each, without gradient. Arguments as in `predict`; the other half does not
        run.
        """

    def flexible_attention(self) -> AbstractContextManager[None]:
        """Inside, attention takes its batch from its queries, so that hooks of the projections may add rows to it."""

    def cross_attention_layers(self) -> Sequence[str]:
        """Names of the cross-attention layers in forward order; `probe` counts in this order."""

    def linear_layers(self) -> Mapping[str, torch.nn.Module]:
        """The UNet's linear layers by diffusers name, for low-rank deltas."""

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        """Every layer of the UNet that has a weight, by diffusers name, for full-rank deltas."""

    def session(self, *, gradient_checkpointing: bool = False) -> AbstractContextManager[None]:
        """Hold while training: on the device, autograd usable, frozen, evaluation mode; restores all on exit."""


@dataclass(frozen=True)
class ImageFeatures:
    """What a CLIP vision tower says about pictures, for a tuning-encoder (METHODS.md 3.2).

    `vectors` (B, V, w): the CLS token of every second layer and the pooled output; `grid` (B, w, g, g): the last
    layer's patches.
    """

    vectors: torch.Tensor
    grid: torch.Tensor

    @staticmethod
    def cat(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Join along the batch axis."""
        return ImageFeatures(torch.cat([one.vectors for one in parts]), torch.cat([one.grid for one in parts]))

    def to(self, device: torch.device) -> ImageFeatures:
        """The same on another device."""
        return ImageFeatures(self.vectors.to(device), self.grid.to(device))


class PictureEncoder(Protocol):
    """What a tuning-encoder has to know of the encoder of its pictures; `core.models.image_encoder` is one."""

    width: int
    """w of `ImageFeatures`."""
    vectors: int
    """V of `ImageFeatures`."""
    fingerprint: str


@dataclass
class TokenMeans:
    """A probe that keeps, per layer, the mean attention of each token: (B, L), differentiable (METHODS.md C3).

    Keeping the means and not the maps makes the memory of the attention loss independent of the picture's size.
    """

    layers: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, layer: int, probabilities: torch.Tensor) -> None:
        if layer != len(self.layers):
            raise RuntimeError(f"cross-attention layer {layer} reported after {len(self.layers)} layers")
        self.layers.append(attention_token_means(probabilities))

    def split(self, sizes: Sequence[int]) -> Iterator[list[torch.Tensor]]:
        """Cut the batch axis of every layer into consecutive pieces."""
        pieces = [torch.split(layer, list(sizes)) for layer in self.layers]
        for index in range(len(sizes)):
            yield [piece[index] for piece in pieces]


def fingerprint(tensors: Mapping[str, torch.Tensor], **facts: Any) -> str:
    """A short stable hash of a few tensors' shapes and values and of plain facts (16 hex digits)."""
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    digest.update(repr(sorted(facts.items())).encode())
    return digest.hexdigest()[:16]
