"""What training a family takes: no float32 copy of a model, and docs/models.md says what the script counts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]
STORED = [torch.bfloat16, torch.float8_e4m3fn]
DEEP = {"z_image": {"n_layers": 8}, "flux": {"depth": 6, "depth_single_blocks": 16}}


@pytest.mark.parametrize("dtype", STORED, ids=["bf16", "fp8"])
@pytest.mark.parametrize("kind", DEEP)
def test_weights_are_never_all_there_in_another_type(comfyui, kind, dtype):
    """Of all the weights of a denoiser, no more at once than one block has in float32."""
    from live_bytes import LiveBytes
    from random_families import build

    from contextual_inversion.core.training.settings import TrainSettings
    from contextual_inversion.core.training.trainer import train
    from contextual_inversion.nodes.comfy.adapting import adapted
    from contextual_inversion.nodes.comfy.families.blocks import lists_of_blocks

    sockets = build(kind, dtype, **DEEP[kind])
    model = adapted(sockets.model, sockets.clip, sockets.vae)
    unet = sockets.model.model.diffusion_model
    shapes = {value.shape for value in unet.parameters() if value.ndim > 1}
    blocks = [numbers(block) for block in lists_of_blocks(unet, model.family.blocks)]
    # A block in float32; and what is around the blocks, which is not run again, in bf16.
    bound = 4 * max(blocks) + 2 * (numbers(unet) - sum(blocks))
    assert 2 * numbers(unet) > 1.5 * bound
    rest = {"steps": 2, "batch": 1, "resolution": 64, "method": "word-lora", "rank": 2}
    settings = TrainSettings("dog", gradient_checkpointing=True, **rest)
    images = torch.rand(1, 64, 64, 3)
    wanted = lambda one: one.shape in shapes and one.dtype.itemsize > 1  # noqa: E731
    with LiveBytes(wanted, apart=unet.parameters()) as live, train(model, images, settings) as run:
        *_, finished = run
    assert finished.step == 2
    assert (live.peak > max(blocks)) is (dtype.itemsize == 1)  # bf16 is computed in as it is stored
    assert live.peak <= bound


def numbers(module):
    return sum(value.numel() for value in module.parameters())


def test_the_documentation_has_what_the_script_counts(comfyui):
    script = ROOT / "scripts" / "family_memory.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT)
    table = done.stdout[done.stdout.index("| GB |") :].strip()
    assert table in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
