"""What training a family takes: no float32 copy of a model, and docs/models.md says what the script counts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]
DEEP = {"z_image": {"n_layers": 8}, "flux": {"depth": 6, "depth_single_blocks": 16}}


@pytest.mark.parametrize("kind", DEEP)
def test_weights_are_never_all_there_in_another_type(comfyui, kind):
    """Of all the weights of a denoiser, no more at once than one block has in float32 and what is around the blocks,
    which is not run again, in bf16. Activations of a weight's shape are counted too: those of a model that is stored as
    it computes are all that it has."""
    from contextual_inversion.nodes.comfy.families.blocks import lists_of_blocks

    as_it_computes, model = measured(kind, torch.bfloat16)
    cast, _ = measured(kind, torch.float8_e4m3fn)
    unet = model.patcher.model.diffusion_model
    blocks = [numbers(block) for block in lists_of_blocks(unet, model.family.blocks)]
    bound = 4 * max(blocks) + 2 * (numbers(unet) - sum(blocks))
    assert 2 * numbers(unet) > 1.5 * bound
    assert as_it_computes <= 2 * max(blocks)
    assert as_it_computes < cast <= as_it_computes + bound


def measured(kind, dtype):
    """The most bytes of 16 or 32 bits, in shapes of weights, that were there at once in a training; and its model."""
    from live_bytes import LiveBytes
    from random_families import build

    from contextual_inversion.core.training.settings import TrainSettings
    from contextual_inversion.core.training.trainer import train
    from contextual_inversion.nodes.comfy.adapting import adapted

    sockets = build(kind, dtype, **DEEP[kind])
    model = adapted(sockets.model, sockets.clip, sockets.vae)
    unet, text = sockets.model.model.diffusion_model, sockets.clip.cond_stage_model
    shapes = {value.shape for value in unet.parameters() if value.ndim > 1}
    rest = {"steps": 2, "batch": 1, "resolution": 64, "method": "word-lora", "rank": 2}
    settings = TrainSettings("dog", gradient_checkpointing=True, **rest)
    images, apart = torch.rand(1, 64, 64, 3), [*unet.parameters(), *text.parameters()]

    def wanted(one):
        return one.shape in shapes and one.dtype.itemsize > 1

    with LiveBytes(wanted, apart) as live, train(model, images, settings) as run:
        *_, finished = run
    assert finished.step == 2
    return live.peak, model


def numbers(module):
    return sum(value.numel() for value in module.parameters())


def test_the_documentation_has_what_the_script_counts(comfyui):
    script = ROOT / "scripts" / "family_memory.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT)
    table = done.stdout[done.stdout.index("| GB |") :].strip()
    assert table in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
