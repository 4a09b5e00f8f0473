"""What MLM adds to a training step: measured on the model at hand, counted on one of Stable Diffusion 1.5's size."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ...core.models.diffusers_text import DiffusersTextEncoder
from ...core.models.families import is_narrow
from ...core.models.protocol import TextToImageModel
from ...core.networks.contextualizer import PRESETS, Contextualizer, EncoderIdentity, initialise
from ...core.prompt_sets import rich_prompts
from ...core.prompts.rich import RichPrompts
from ...core.training.regularizers.mlm import MLMRegularizer
from ...core.training.settings import TrainSettings
from .interleaved import step_figures

SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD15_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
MASKED_TOKENS = 2
"""Of a rich prompt at rho 0.15, rounded up: only these pass the output layer."""


def mlm_figures(
    subject: TextToImageModel,
    settings: TrainSettings,
    pictures: torch.Tensor,
    *,
    turns: int,
    steps: int,
    batch: int = 25,
) -> dict[str, Any]:
    """Plain steps and steps with MLM in turns; the first turn warms up. `mlm_over_ti` is the median of the ratios.

    The contextualizers have random weights, which cost what trained ones cost. `settings.regularize_every` is that of
    what is counted at true size, too.
    """
    mlm = MLMRegularizer(random_contextualizers(subject), prompts(subject), weight=1.0, batch=batch, beside_class=False)
    figures, _ = step_figures("mlm", subject, settings, pictures, mlm, turns=turns, steps=steps)
    return {
        **figures,
        "mlm_batch": batch,
        "mlm_over_ti_operations_sd15": {
            f"batch {size}, {preset}": sd15_operations(size, batch, preset, settings.regularize_every)
            for size in (4, 6)
            for preset in ("paper", "short")
        },
    }


def true_mlm_cost(
    subject: TextToImageModel, *, side: int = 512, batch: int = 4, turns: int = 3, every: int = 1
) -> dict[str, Any]:
    """Keys "sd15_mlm_paper_over_ti" and "sd15_mlm_short_over_ti": as `mlm_figures`, for a model of Stable Diffusion
    1.5's true size, which needs 16 GB in single precision, and pictures of `side` pixels; MLM in `every` so many
    steps, which are a turn."""
    steps = every
    settings = TrainSettings(
        "dog", steps=steps * (turns + 1), batch=batch, log_every=steps, resolution=side, regularize_every=every
    )
    pictures = torch.rand(batch, side, side, 3, generator=torch.Generator().manual_seed(0))
    figures: dict[str, Any] = {}
    for preset in ("paper", "short"):
        psis = random_contextualizers(subject, preset)
        mlm = MLMRegularizer(psis, prompts(subject), weight=1.0, beside_class=False)
        measured = step_figures(f"sd15_mlm_{preset}", subject, settings, pictures, mlm, turns=turns, steps=steps)
        figures |= measured[0]
    return figures


def prompts(subject: TextToImageModel) -> RichPrompts:
    """Rich prompts of the length that the model is made for."""
    return rich_prompts("concept_world" if is_narrow(subject) else "objects")


def sd15_text_encoder() -> Any:
    """Stable Diffusion 1.x's text encoder with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**SD15_TEXT)).requires_grad_(False).eval()


def random_contextualizers(subject: TextToImageModel, preset: str | None = None) -> list[Contextualizer]:
    """One for every text encoder, of the right size where no `preset` is given."""
    made = []
    for encoder in subject.text_encoders.values():
        size = preset or ("paper" if encoder.width >= 768 else "tiny")
        psi = Contextualizer(EncoderIdentity.of(encoder), PRESETS[size])
        made.append(initialise(psi, encoder.table(), torch.Generator().manual_seed(0)))
    return made


def sd15_operations(batch: int, mlm_batch: int, preset: str = "paper", every: int = 1) -> float:
    """Operations of a step with MLM over those of a plain one, for Stable Diffusion 1.5 at 512 pixels; where MLM is in
    `every` so many steps, the mean of these.

    Counted on tensors without memory, so no machine is too small for it. Both directions of the pass count; gradients
    go to the word alone.
    """
    text, sample = sd15_plain()
    return 1 + _sd15_mlm(mlm_batch, preset) / (text + batch * sample) / every


@cache
def sd15_plain() -> tuple[int, int]:
    """Operations of the text encoder for one prompt, and of the UNet for each sample."""
    from diffusers import UNet2DConditionModel

    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        unet, encoder = UNet2DConditionModel(**SD15_UNET).requires_grad_(False), _sd15_encoder()
        with FlopCounterMode(display=False) as text:
            word, context = _outputs(encoder, 1, encoder.max_length)
            torch.autograd.grad(context.square().mean(), word)
        with FlopCounterMode(display=False) as whole:
            word, context = _outputs(encoder, 1, encoder.max_length)
            latents = torch.zeros(1, 4, SD15_UNET["sample_size"], SD15_UNET["sample_size"])
            noise = unet(latents, torch.zeros(1), context).sample
            torch.autograd.grad(noise.square().mean(), word)
    return text.get_total_flops(), whole.get_total_flops() - text.get_total_flops()


@cache
def _sd15_mlm(batch: int, preset: str) -> int:
    with FakeTensorMode(), torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        encoder = _sd15_encoder()
        identity = EncoderIdentity("clip_l", "", encoder.width, encoder.max_length, SD15_TEXT["vocab_size"])
        psi = Contextualizer(identity, PRESETS[preset]).requires_grad_(False)
        word, context = _outputs(encoder, batch, len(psi.positions))
        logits = psi(context, torch.zeros(MASKED_TOKENS * batch, dtype=torch.long))
        torch.autograd.grad(logits.square().mean(), word)
    return counter.get_total_flops()


def _sd15_encoder() -> DiffusersTextEncoder:
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = SimpleNamespace(bos_token_id=49406, eos_token_id=49407, pad_token_id=49407)
    return DiffusersTextEncoder("clip_l", CLIPTextModel(CLIPTextConfig(**SD15_TEXT)).requires_grad_(False), tokens)


def _outputs(encoder: DiffusersTextEncoder, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A word's leaf and what the encoder makes of it."""
    word = torch.zeros(count, length, encoder.width, requires_grad=True)
    return word, encoder.encode(word, torch.zeros(count, length, dtype=torch.long)).tokens
