"""Attention probabilities in half precision, at the sizes that Stable Diffusion has."""

import pytest
import torch

from contextual_inversion.core.maths.context import LAMBDA_ATTN, attention_loss
from contextual_inversion.core.models.attention import attention_probabilities
from contextual_inversion.core.training.run.loss_scale import LOSS_SCALE

TOKENS, CONTEXT, DRIFT = 77, 8, 0.1
SIZES = {"SD 1, 64 x 64": (4096, 4, 40, 16), "SDXL, 32 x 32": (1024, 4, 64, 70)}
"""Pixels, heads, width of a head, layers that share the loss."""


def key_gradient(size, dtype, scale=1.0, autocast=None):
    """Of the attention loss of one layer (METHODS.md C3), as a training with `scale` on its losses gets it."""
    pixels, heads, width, layers = size
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(1, heads, *shape, generator=generator)

    query, key = normal(1, width) + normal(pixels, width), normal(TOKENS, width)
    other = key + DRIFT * normal(TOKENS, width)
    query, key, other = (x.to(dtype) for x in (query, key, other))
    key.requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        ours, theirs = (attention_probabilities(query, one).mean(dim=(1, 2)) for one in (key, other.detach()))
    loss = attention_loss([ours], [theirs], torch.arange(CONTEXT), torch.arange(CONTEXT)) / layers
    (scale * LAMBDA_ATTN * loss).backward()
    return key.grad.float() / scale


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_attention_losses_gradient_survives_float16(size):
    exact, half = key_gradient(size, torch.float32), key_gradient(size, torch.float16, LOSS_SCALE)
    assert (half - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_autocast_does_not_take_it_either(size):
    assert torch.equal(key_gradient(size, torch.float32, autocast=torch.float16), key_gradient(size, torch.float32))


def test_large_queries_do_not_overflow():
    query, key = torch.full((1, 1, 2, 64), 500.0).half(), torch.full((1, 1, 3, 64), 500.0).half()
    probabilities = attention_probabilities(query, key, scale=1.0)
    torch.testing.assert_close(probabilities, torch.full((1, 1, 2, 3), 1 / 3))
