"""What recording attention costs a sampling; part of `contextual-inversion bench`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from ..core.inspection.attention import AttentionRecorder
from ..core.models.protocol import ImageSize, TextToImageModel
from ..core.models.sampling import sample
from ..core.models.text import encode_prompts

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
    ratios: list[tuple[float, float]] = []
    with model.session(), torch.no_grad():
        positive = model.conditioning(encode_prompts(model, [PROMPT]), size)
        negative = model.conditioning(encode_prompts(model, [""]), size)
        recorder = AttentionRecorder()

        def run(record: bool) -> tuple[torch.Tensor, float, float]:
            probe = recorder.sampling(model.cross_attention_layers(), latent_size) if record else None
            begin = time.perf_counter(), time.process_time()
            shape = (batch, model.latent_channels, *latent_size)
            latents = sample(model, positive, negative, shape=shape, steps=steps, seed=0, probe=probe).cpu()
            return latents, time.perf_counter() - begin[0], time.process_time() - begin[1]

        for turn in range(repetitions + 1):  # the first warms up and is not counted
            order = (False, True) if turn % 2 else (True, False)
            results = {record: run(record) for record in order}
            plain, recorded = results[False], results[True]
            if not torch.equal(plain[0], recorded[0]):
                raise RuntimeError("the picture sampled while recording is another one")
            if turn:
                ratios.append((recorded[1] / plain[1], recorded[2] / plain[2]))
    clock = [one for one, _ in ratios]
    return {
        "attention_over_plain": statistics.median(clock),
        "attention_over_plain_range": [min(clock), max(clock)],
        "attention_over_plain_processor_time": statistics.median(processor for _, processor in ratios),
        "attention_over_plain_steps": steps,
    }
