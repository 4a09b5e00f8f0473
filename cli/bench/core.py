"""What CoRe adds to a training step, counted on a model of Stable Diffusion 1.5's size."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ...core.models.diffusers_attention import cross_attention_modules, probed
from ...core.models.protocol import TokenMeans
from ...core.training.regularizers.context import ATTENTION_SHARE
from .mlm import SD15_TEXT, SD15_UNET, sd15_plain


def core_operations(batch: int, attention_batch: int | None = None, every: int = 1) -> float:
    """Operations of a step with CoRe over those of a plain one, for Stable Diffusion 1.5 at 512 pixels: its prompt goes
    through the text encoder, and `attention_batch` latents (a third of the batch, rounded up, if None) twice through
    the UNet. Asked in `every` so many steps it is the mean of these.

    Counted as `mlm.sd15_operations`. L_emb itself is left out, and the reference's prompt, which is encoded once.
    """
    text, sample = sd15_plain()
    attended = min(batch, attention_batch or math.ceil(batch / ATTENTION_SHARE))
    return 1 + (text + attended * _attended()) / (text + batch * sample) / every


@cache
def _attended() -> int:
    """Operations of the UNet for each latent that the attention loss looks at: a pass with the class word, one with the
    word, and that one's way back to what the text encoder said."""
    from diffusers import UNet2DConditionModel

    side = SD15_UNET["sample_size"]
    with FakeTensorMode(), torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        unet = UNet2DConditionModel(**SD15_UNET).requires_grad_(False)
        layers = list(cross_attention_modules(unet).values())
        latents, steps = torch.zeros(1, 4, side, side), torch.zeros(1)
        said = torch.zeros(1, SD15_TEXT["max_position_embeddings"], SD15_TEXT["hidden_size"], requires_grad=True)
        context = said.clone()  # the counter takes no leaf for a module's input
        with torch.no_grad(), probed(layers, TokenMeans()):
            unet(latents, steps, context)
        means = TokenMeans()
        with probed(layers, means):
            unet(latents, steps, context)
        torch.autograd.grad(sum(layer.square().mean() for layer in means.layers), said)
    return counter.get_total_flops()
