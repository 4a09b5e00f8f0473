"""`contextual-inversion bench`: what a training step costs, with and without CoRe."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...core.training.defaults import Precision, UNetPasses
from ..loading import chosen_device, load_model

if TYPE_CHECKING:
    import torch

    from ...core.models.diffusers_adapter import DiffusersModel
    from ...core.models.protocol import TextToImageModel

PROMPTS = ("a {} in the snow", "a red {} on the beach", "a drawing of a {} beside a lake", "a photo of a {} at night")


def main(
    *,
    model: Literal["tiny", "wide", "sd15"] | Path = "tiny",
    steps: int = 8,
    repetitions: int = 5,
    batch: int = 6,
    attention_batch: int | None = None,
    passes: UNetPasses = "joint",
    precision: Precision = "model",
    device: str | None = None,
    true_size: bool = False,
    peer: Path | None = None,
    growth: bool = False,
    regularize_every: int = 1,
) -> dict[str, Any]:
    """Measure the time and memory of a training step, with and without CoRe.

    Both are measured in turns in one process, so that a busy machine slows both; the figures are medians over the turns
    and `core_over_ti` the median of the turns' ratios.

    Args:
        model: "tiny" (bundled), "wide" (random weights, Stable Diffusion's shape at a fifth of its width), or the
            folder of a diffusers pipeline; "sd15" is "wide" at full width, with a text encoder of true size.
        steps: Training steps in one turn.
        repetitions: Turns of each kind.
        batch: Samples a step.
        attention_batch: Latents that CoRe's attention loss looks at; a third of the batch if not given.
        passes: CoRe's UNet pass in one batch with the main pass, or after it.
        precision: What the UNet computes in.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        true_size: Also sample over two paths and train with MLM at Stable Diffusion 1.5's true size: 16 GB, and half
            an hour on a CPU.
        peer: textual_inversion.py of diffusers' examples: only compare plain textual inversion with it, on the
            pipeline's folder of --model at its size, each run a process of its own.
        growth: Only find out whether steps and memory grow with pictures, prompts, steps and trainings: small ones on
            64 pixels, 3,000 steps of one of them. Minutes on the bundled model.
        regularize_every: CoRe and MLM in every so many steps, with so many times their weight; the steps of a turn are
            rounded up to a multiple of it. Figures are means over all steps.
    """

    import torch

    from ...core.models.words import starting_vectors
    from ...core.training.regularizers.context import CoReRegularizer
    from ...core.training.settings import TrainSettings
    from .attention import attention_cost
    from .comfy import comfy_figures
    from .core import core_operations
    from .dual_path import dual_path_cost, sd15_dual_path
    from .interleaved import step_figures
    from .mlm import mlm_figures
    from .tuning_encoder import tuning_memory_figures

    if steps < 1 or repetitions < 1 or regularize_every < 1:
        raise ValueError(
            f"--steps, --repetitions and --regularize-every are at least 1, not {steps}, {repetitions} and "
            f"{regularize_every}"
        )
    if peer is not None:
        return beside_peer(model, peer, batch, repetitions, steps)
    place = chosen_device(device)
    subject = _model(model, place)
    if growth:
        return growing(subject)
    turns = repetitions + 1  # the first warms up and is not counted
    steps = regularize_every * -(-steps // regularize_every)
    settings = TrainSettings(
        class_word="dog",
        steps=steps * turns + regularize_every,  # and some to count operations in
        batch=batch,
        passes=passes,
        precision=precision,
        log_every=steps,
        resolution=_side(subject),
        regularize_every=regularize_every,
    )
    pictures = torch.rand(4, settings.resolution, settings.resolution, 3, generator=torch.Generator().manual_seed(0))
    core = CoReRegularizer(PROMPTS, embedding_weight=1.0, attention_weight=1.0, attention_batch=attention_batch)
    core_figures, ti_step = step_figures("core", subject, settings, pictures, core, turns=turns, steps=steps)
    figures = {
        "ti_step_s": ti_step,
        **core_figures,
        "core_over_ti_operations_sd15": {
            f"batch {size}": core_operations(size, attention_batch, regularize_every) for size in (4, 6)
        },
        "regularize_every": regularize_every,
        "peak_mb": _peak_mb(place),
        "batch": batch,
        "attention_batch": attention_batch or -(-batch // 3),
        "passes": passes,
        "precision": precision,
        "model": subject.name,
        "repetitions": repetitions,
        "steps": steps,
        "machine": _machine(place),
        **mlm_figures(subject, settings, pictures, turns=turns, steps=steps),
        **attention_cost(subject, side=settings.resolution, repetitions=repetitions),
        **dual_path_cost(subject, side=settings.resolution, repetitions=repetitions),
        **sd15_dual_path(),
        **tuning_memory_figures(),
    }
    start = {name: starting_vectors(encoder, "dog", 1) for name, encoder in subject.text_encoders.items()}
    figures |= comfy_figures(model, start, side=settings.resolution, batch=batch, repetitions=repetitions, steps=steps)
    if true_size:
        figures |= true_size_costs(_wide(place, 320), regularize_every)
    print(
        f"TI {figures['ti_step_s'] * 1e3:.1f} ms a step, CoRe {figures['core_step_s'] * 1e3:.1f} ms: "
        f"{figures['core_over_ti']:.2f} times; peak {figures['peak_mb']:.0f} MB\n"
        f"MLM {figures['mlm_step_s'] * 1e3:.1f} ms: {figures['mlm_over_ti']:.2f} times\n"
        f"recording attention: {figures['attention_over_plain']:.2f} times plain sampling\n{comfy_line(figures)}"
    )
    return figures


def comfy_line(figures: Mapping[str, Any]) -> str:
    """What ComfyUI's side cost, or why nobody knows."""
    if figures["comfy_why"] is not None:
        return f"ComfyUI: {figures['comfy_why']}"
    return (
        f"Train Concept in ComfyUI {figures['comfy_over_cli']:.2f} times train, the words "
        f"{figures['comfy_words_apart']:.1e} of their way apart; its start {figures['start_up_s']:.2f} s longer"
    )


def growing(model: TextToImageModel) -> dict[str, Any]:
    """What `growth_figures` finds, shown."""
    from .growth import growth_figures

    figures = growth_figures(model)
    for name, value in figures.items():
        parts = value.items() if isinstance(value, dict) else enumerate(value, 1)
        print(f"{name:26}" + "".join(f"{key:>8}: {number:<10.4g}" for key, number in parts))
    return figures


def beside_peer(model: str | Path, peer: Path, batch: int, repetitions: int, steps: int) -> dict[str, Any]:
    """What `peer_figures` finds, shown."""
    import json

    from .peer import peer_figures

    if not isinstance(model, Path):
        raise ValueError("--peer needs the folder of a diffusers pipeline as --model: another trainer knows no other")
    sample = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))["sample_size"]
    side = 8 * int(sample)
    figures = peer_figures(model, peer, side=side, batch=batch, repetitions=repetitions, steps=steps)
    print(peer_table(figures))
    return {**figures, "batch": batch, "resolution": side, "repetitions": repetitions, "steps": steps}


def peer_table(figures: Mapping[str, Any]) -> str:
    """A line for each of the compared, and how it stands to the peer."""
    kinds = [kind for kind in ("peer", "ti", "comfy") if f"{kind}_step" in figures]
    lines = [f"{'':6}{'step, s':>10}{'first step, s':>16}{'memory over the weights, MiB':>32}"]
    for kind in kinds:
        step, first, memory = (figures[f"{kind}_{key}"] for key in ("step", "first_step", "memory"))
        lines.append(f"{kind:6}{step:>10.2f}{first:>16.1f}{memory / 2**20:>32.0f}")
    if figures.get("comfy_why"):
        lines.append(f"ComfyUI: {figures['comfy_why']}")
    return "\n".join(lines)


def true_size_costs(model: TextToImageModel, every: int = 1) -> dict[str, Any]:
    """Keys "sd15_...", of a model of Stable Diffusion 1.5's true size: two paths against one on latents of 32 x 32, and
    steps with MLM at 512 pixels, in `every` so many of them."""

    from .dual_path import dual_path_cost
    from .mlm import true_mlm_cost

    dual = dual_path_cost(model, side=_side(model), steps=1, repetitions=2, prefix="sd15_")
    return dual | true_mlm_cost(model, every=every)


def _model(name: str | Path, device: torch.device) -> TextToImageModel:
    if name in ("wide", "sd15"):
        return _wide(device, 64 if name == "wide" else 320)
    return load_model(name, str(device))


def _wide(device: torch.device, channels: int) -> DiffusersModel:
    """Random weights in the shape of Stable Diffusion 1.x, which has 320 `channels`; 16 cross-attention layers."""

    import torch
    from diffusers import UNet2DConditionModel

    from ...core.models.diffusers_adapter import DiffusersModel
    from ...core.models.tiny.load import load_tiny
    from .mlm import sd15_text_encoder

    tiny = load_tiny()
    torch.manual_seed(0)
    if channels == 320:
        tiny.text_encoder = sd15_text_encoder()
    tiny.unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(channels, 2 * channels, 4 * channels, 4 * channels),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=tiny.text_encoder.config.hidden_size,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    model = DiffusersModel.from_tiny(tiny, device=device)
    model.name = "wide, random weights"
    return model


def _side(model: TextToImageModel) -> int:
    sample = getattr(getattr(getattr(model, "unet", None), "config", None), "sample_size", 64)
    return int(sample) * model.latent_factor


def _peak_mb(device: torch.device) -> float:
    """The most memory in use so far: the GPU's where it is one, else that of the process."""

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _machine(device: torch.device) -> Mapping[str, Any]:
    import torch

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }
