"""UNet passes of one step, run together or one after another, and what their cross-attention shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..models.protocol import Conditioning, TextToImageModel, TokenMeans
from .regularizers.seam import AttentionPass

Seen = list[list[torch.Tensor]]
"""For every pass the token means (B, L) of each cross-attention layer."""


def predict(
    model: TextToImageModel, main: AttentionPass, watched: Sequence[AttentionPass], *, together: bool
) -> tuple[torch.Tensor, Seen]:
    """The prediction of the `main` pass, and what the `watched` ones see; `together` in one batch."""
    if not together or not watched:
        return model.predict(main.latents, main.timesteps, main.conditioning), watch(model, watched)
    passes, probe = [main, *watched], TokenMeans()
    prediction = model.predict(*_joined(passes), probe)
    return prediction[: len(main.latents)], list(probe.split(_sizes(passes)))[1:]


def watch(model: TextToImageModel, passes: Sequence[AttentionPass]) -> Seen:
    """What passes see whose prediction nobody wants."""
    if not passes:
        return []
    probe = TokenMeans()
    model.predict(*_joined(passes), probe)
    return list(probe.split(_sizes(passes)))


def _sizes(passes: Sequence[AttentionPass]) -> list[int]:
    return [len(one.latents) for one in passes]


def _joined(passes: Sequence[AttentionPass]) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    if len(passes) == 1:
        return passes[0].latents, passes[0].timesteps, passes[0].conditioning
    return (
        torch.cat([one.latents for one in passes]),
        torch.cat([one.timesteps for one in passes]),
        Conditioning.cat([one.conditioning for one in passes]),
    )
