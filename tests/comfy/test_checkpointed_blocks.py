"""Of a SpatialTransformer with many blocks one at a time runs again: with weights that are cast, ten at once were the
peak of a training on SDXL. Counted in bytes that live."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

WIDTH, CONTEXT = 64, 96


def transformer(depth: int) -> Any:
    """Stored in half precision and computed with in single, as ComfyUI has it."""
    import comfy.ops
    from comfy.ldm.modules.attention import SpatialTransformer

    torch.manual_seed(0)
    layer = SpatialTransformer(
        WIDTH, 2, WIDTH // 2, depth=depth, context_dim=CONTEXT, use_linear=True, use_checkpoint=False,
        dtype=torch.float16, device="cpu", operations=comfy.ops.manual_cast,
    ).requires_grad_(False)  # fmt: skip
    for value in layer.parameters():
        value.normal_(0, 0.05)
    return layer


def step(layer: Any, checkpointing: bool) -> tuple[int, torch.Tensor, dict[str, Any]]:
    """The most bytes that live in both passes, the gradient at the context, and the options afterwards."""
    from contextual_inversion.cli.bench.dual_path import peak_bytes
    from contextual_inversion.nodes.comfy.checkpointing import checkpointed

    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, WIDTH, 2, 2, generator=generator), torch.randn(1, 7, CONTEXT, generator=generator)
    context.requires_grad_(True)
    options = {"block": ("input", 1), "transformer_index": 3}
    with peak_bytes() as peak:
        if checkpointing:
            out = checkpointed(layer, x, None, context, options)
        else:
            out = layer(x, context, options)
        (gradient,) = torch.autograd.grad(out.square().sum(), context)
    return peak[0], gradient, options


def test_the_peak_does_not_grow_with_the_blocks(comfyui: Any) -> None:
    few, many = (step(transformer(depth), True)[0] for depth in (2, 10))
    block = 4 * sum(value.numel() for value in transformer(1).transformer_blocks[0].parameters())
    assert many - few < block / 4  # what goes into eight blocks, of which their weights are nothing
    assert step(transformer(10), False)[0] > 9 * block


@pytest.mark.parametrize("depth", [1, 3])
def test_the_gradient_is_that_without_checkpointing(comfyui: Any, depth: int) -> None:
    layer = transformer(depth)
    _, plain, _ = step(layer, False)
    _, checkpointed, options = step(layer, True)
    assert torch.equal(checkpointed, plain)
    assert options["transformer_index"] == 4
    parts = [layer.proj_in, layer.proj_out, *layer.transformer_blocks]
    assert not any("forward" in vars(part) for part in parts)


def test_each_block_sees_its_own_number_again(comfyui: Any) -> None:
    """The options are the UNet's, which writes the next block's number into them before the backward pass begins."""
    from contextual_inversion.nodes.comfy.checkpointing import checkpointed

    layer, seen = transformer(3), []
    for block in layer.transformer_blocks:

        def noting(x: Any, context: Any = None, transformer_options: Any = None, forward: Any = block.forward) -> Any:
            seen.append((transformer_options["block"], transformer_options["block_index"]))
            return forward(x, context=context, transformer_options=transformer_options)

        block.forward = noting
    options, context = {"block": ("input", 1)}, torch.zeros(1, 7, CONTEXT, requires_grad=True)
    out = checkpointed(layer, torch.ones(1, WIDTH, 2, 2), None, context, options)
    options["block"] = ("output", 5)
    torch.autograd.grad(out.square().sum(), context)
    assert seen == [(("input", 1), index) for index in (0, 1, 2, 2, 1, 0)]
