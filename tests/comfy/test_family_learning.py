"""A word and a LoRA learn a picture by heart, on families beyond Stable Diffusion.

With random weights it takes a model that can: of the others' tiny ones the loss falls less (docs/models.md).
"""

import pytest
import torch
from family_graphs import (
    KEEP,
    WORD_AND_LORA,
    applied_concept,
    condition_of,
    diffusion_loss,
    graph,
    latents_of,
    said,
    side_of,
    silent_loss,
    stock,
)

KINDS = ("sd35", "flux", "qwen_image", "z_image", "hunyuan_dit", "wan", "krea2")


def coloured(color, side):
    return stock("EmptyImage", width=side, height=side, batch_size=1, color=color)


BLUE, GOLD = 0x2060C0, 0xE0A020
SLOWER = {"z_image": 180}
"""Steps in place of 100: it is the widest, and 256 numbers for each token change more slowly."""


@pytest.mark.supports("TrainConcept: word and LoRA together")
def test_a_word_and_a_lora_learn_a_picture_by_heart(run_graph, loader):
    """The loss of one picture falls by half, on noise and noise levels that are the same before and after, in what
    ComfyUI itself predicts; below that of a model that says nothing, and further than that of another picture."""
    side = side_of(loader)
    steps = SLOWER.get(loader["inputs"]["kind"], 100)
    numbers = {"steps": steps, "weight_rate": 0.05, "learning_rate": 0.02, "vectors": 1, "rank": 16}
    nodes = {
        **graph(loader, train=WORD_AND_LORA, **numbers),
        "images": coloured(BLUE, side),
        "other": coloured(GOLD, side),
    }
    nodes["apply"] = applied_concept(["train", 0])
    others = {"vae": ("model", 2), "images": ("images", 0), "other": ("other", 0)}
    run = run_graph(nodes, keep={**KEEP, **others, "ours": ("apply", 0), "knowing": ("apply", 1)})
    assert run.status == "success", said(run)
    kept = run.kept
    with torch.inference_mode():
        plain = condition_of(kept["clip"], "a photo of a house")
        word = condition_of(kept["knowing"], "a photo of a <keep>")
        losses = {}
        for name in ("images", "other"):
            latents = latents_of(kept["model"], kept["vae"], kept[name], side)
            losses[name] = (diffusion_loss(kept["model"], plain, latents), diffusion_loss(kept["ours"], word, latents))
        silent = silent_loss(kept["model"], latents_of(kept["model"], kept["vae"], kept["images"], side))
    (before, after), (other_before, other_after) = losses["images"], losses["other"]
    assert after < 0.5 * before
    assert after < silent
    assert after / before < other_after / other_before
    assert all(len(value) == 1 for value in kept["concept"].vectors.values())
