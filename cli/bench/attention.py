"""What recording attention costs a sampling; part of `contextual-inversion bench`."""

from __future__ import annotations

from typing import Any

import torch

from ...core.inspection.attention.recorder import AttentionRecorder
from ...core.models.protocol import ImageSize, TextToImageModel
from ...core.models.sampling import sample
from ...core.models.text import encode_prompts
from .interleaved import sampling_figures

PROMPT = "a photo of a red cat in the snow"


def attention_cost(
    model: TextToImageModel, *, side: int, batch: int = 4, steps: int = 8, repetitions: int = 5
) -> dict[str, Any]:
    """Sampling with and without a recorder in turns: medians of the turns' ratios, by the clock and by processor time.

    `side` in pixels. Raises RuntimeError where the two sample different pictures: a cheap recorder that changed them
    would be no recorder.
    """
    size = ImageSize(side, side)
    latent_size = (side // model.latent_factor, side // model.latent_factor)
    with model.session(), torch.no_grad():
        positive = model.conditioning(encode_prompts(model, [PROMPT]), size)
        negative = model.conditioning(encode_prompts(model, [""]), size)
        recorder = AttentionRecorder()

        def run(record: bool) -> torch.Tensor:
            probe = recorder.sampling(model.cross_attention_layers(), latent_size) if record else None
            shape = (batch, model.latent_channels, *latent_size)
            return sample(model, positive, negative, shape=shape, steps=steps, seed=0, probe=probe).cpu()

        figures = sampling_figures("attention_over_plain", run, repetitions, require_same)
    return {**figures, "attention_over_plain_steps": steps}


def require_same(plain: torch.Tensor, recorded: torch.Tensor) -> None:
    if not torch.equal(plain, recorded):
        raise RuntimeError("the picture sampled while recording is another one")
