"""What two paths cost a sampling; part of `contextual-inversion bench`."""

from __future__ import annotations

from typing import Any

import torch

from ..core.models.dual_path import DualPath, DualPathModel
from ..core.models.low_rank import LowRankDelta
from ..core.models.protocol import ImageSize, TextToImageModel
from ..core.models.sampling import sample
from ..core.models.text import encode_prompts
from .interleaved import sampling_figures

RANK = 4
SOFT, HARD = "a photo of a red cat in the snow", "a photo of a red dog in the snow"


def dual_path_cost(
    model: TextToImageModel, *, side: int, batch: int = 1, steps: int = 4, repetitions: int = 5, prefix: str = ""
) -> dict[str, Any]:
    """Sampling over two paths and over one in turns: medians of the turns' ratios, by the clock and by processor time.

    `side` in pixels. A rank-4 delta on every attention projection, guidance on, so that half of each batch has two
    paths. `prefix` goes before the keys, to tell several models apart.
    """
    size = ImageSize(side, side)
    shape = (batch, model.latent_channels, side // model.latent_factor, side // model.latent_factor)
    with model.session(), torch.no_grad():
        hard, soft, negative = (
            model.conditioning(encode_prompts(model, [prompt]), size) for prompt in (HARD, SOFT, "")
        )
        path = DualPath(soft, random_deltas(model), rows=slice(-batch, None))
        models = {False: model, True: DualPathModel(model, path)}

        def run(dual: bool) -> torch.Tensor:
            return sample(models[dual], hard, negative, shape=shape, steps=steps, seed=0).cpu()

        figures = sampling_figures(f"{prefix}dual_over_plain", run, repetitions)
    return {**figures, f"{prefix}dual_over_plain_side": side}


def random_deltas(model: TextToImageModel, rank: int = RANK) -> dict[str, LowRankDelta]:
    """A random delta on every attention projection."""
    found = {}
    for name, module in model.linear_layers().items():
        if ".attn" in name:
            a = torch.randn(module.in_features, rank, device=model.device) / module.in_features**0.5
            found[name] = LowRankDelta(a, 0.01 * torch.randn(rank, module.out_features, device=model.device))
    return found
