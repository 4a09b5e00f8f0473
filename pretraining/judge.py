"""Stage "judge": the network of `core.inspection.world.checks`, on renders that went through the VAE."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..core.inspection.world.checks import GRID, KIND_ROWS, KINDS, JudgeNetwork
from ..core.models.tiny.weights import read_tensors, write_tensors
from ..core.world.concepts import CONCEPTS
from ..core.world.render import render
from ..core.world.scenes import BACKGROUNDS, COLOURS, SHAPES, STYLES, WORLD_VERSION, WORN, Scene, SecondObject
from .forms import BUNDLED, FRESH, Form, inherit, start_path
from .pictures import scene as training_scene
from .processes import Processes
from .run import Plan, Run
from .vae import reconstruct

IGNORED = -100


def judged_scene(index: int, split: str = "train") -> Scene:
    """Scene `index` for the judge. Of twelve, four show a held-out concept and one its class in its main colour.

    One more shows its class in both of its colours and its pattern, bare or with a hat or crown: what makes it the
    concept are its parts.
    """
    base = training_scene(split, index)
    if index % 6 not in (0, 1, 3):
        return base
    rng = np.random.default_rng([9 if split == "train" else 10, index])
    concept = list(CONCEPTS.values())[int(rng.integers(len(CONCEPTS)))]
    if index % 6 == 1:  # most easily mistaken for it
        second = base.second if base.second is None or base.second.shape != concept.super_category else None
        look = replace(base, subject=concept.super_category, colour=concept.colour, second=second)
        if index % 12 == 7:
            worn = WORN[int(rng.integers(len(WORN)))] if second is None else ""
            return replace(look, second_colour=concept.second_colour, texture=concept.texture, worn=worn)
        others = [c for c in COLOURS if c not in (concept.colour, concept.second_colour)]
        return replace(look, second_colour=others[int(rng.integers(len(others)))])
    second = None
    if base.second is not None:
        others = [s for s in SHAPES if s != concept.super_category]
        second = SecondObject(others[int(rng.integers(len(others)))], base.second.colour)
    return Scene(
        concept.subject,
        background=base.background,
        place=base.place,
        second=second,
        style=base.style,
        seed=base.seed,
    )


def labels(scene: Scene, subject: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """Class of every cell (32, 32) for each head; -100 where the head is not asked."""
    step = 128 // GRID
    share = [m.reshape(GRID, step, GRID, step).mean((1, 3)) for m in (subject, second)]
    role = np.where(share[0] >= 0.5, 1, np.where(share[1] >= 0.5, 2, 0))
    first_colour = IGNORED if scene.concept else list(COLOURS).index(scene.colour)
    colour = np.where(role == 1, first_colour, IGNORED)
    kind = np.where(role == 1, KINDS.index(scene.subject), IGNORED)
    if scene.second is not None:
        colour = np.where(role == 2, list(COLOURS).index(scene.second.colour), colour)
        kind = np.where(role == 2, KINDS.index(scene.second.shape), kind)
    background = np.where(role == 0, BACKGROUNDS.index(scene.background), IGNORED)
    style = np.full_like(role, STYLES.index(scene.style))
    return {"role": role, "kind": kind, "colour": colour, "background": background, "style": style}


def decoded_pictures(
    folder: Path, split: str, n: int, form: Form
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[Scene]]:
    """Reconstructions uint8 (n, 3, 128, 128), their labels (n, 32, 32), and the scenes.

    They are kept in `folder` under a name that says for how many kinds and after which VAE.
    """
    vae_file = hashlib.sha256(form.found("vae").read_bytes()).hexdigest()[:8]
    path = folder / "pictures" / f"judge-{split}-{n}.{len(KINDS)}-{vae_file}.pt"
    scenes = [judged_scene(i, split) for i in range(n)]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)  # before the minutes of work
        vae = form.load("vae")
        images, marked = [], []
        for start in range(0, n, 64):
            drawn = [render(s) for s in scenes[start : start + 64]]
            seen = reconstruct(vae, np.stack([image for image, _ in drawn]), torch.device("cpu"))
            images.append((seen * 255).round().to(torch.uint8))
            for s, (_, masks) in zip(scenes[start : start + 64], drawn, strict=True):
                marked.append(labels(s, masks.subject, masks.second))
        stacked = {k: torch.from_numpy(np.stack([m[k] for m in marked])).to(torch.int8) for k in marked[0]}
        torch.save({"images": torch.cat(images), "labels": stacked}, path)
    saved = torch.load(path, weights_only=True)
    return saved["images"], saved["labels"], scenes


def disturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What sampling may do to a picture: another brightness, a blur or none, noise; half of them are mirrored."""
    n = len(x)
    x = x * (0.9 + 0.2 * torch.rand(n, 1, 1, 1, generator=generator))
    x = x + 0.08 * torch.randn(n, 3, 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, torch.rand(n, 1, 1, 1, generator=generator))
    return x + 0.08 * torch.rand(n, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)


def inherit_judge(network: JudgeNetwork, state: dict[str, torch.Tensor]) -> None:
    """Take over a judge that knows as many kinds or fewer; of those that it lacks the rows stay as they are.

    Raises ValueError where anything else differs, or where `state` knows more. What a judge knows begins `KINDS`.
    """
    grown = {KIND_ROWS: 0, KIND_ROWS.replace("weight", "bias"): 0}
    network.load_state_dict(inherit(network.state_dict(), state, grown))


def train_judge(
    folder: Path,
    processes: Processes,
    steps: int = 2000,
    batch: int = 32,
    scenes: int = 4800,
    form: Form = BUNDLED,
    start: str = FRESH,
) -> None:
    """Train the judge of what comes out of a form's VAE and write its weights (rank 0).

    `start` is one of `STARTS`: one that has judged another VAE's pictures has a quarter of the rate, and may know fewer
    concepts.
    """
    device = processes.device
    if processes.first:
        decoded_pictures(folder, "train", scenes, form)
    processes.wait()
    images, truth, _ = decoded_pictures(folder, "train", scenes, form)
    torch.manual_seed(0)
    network = JudgeNetwork().to(device)
    if start != FRESH:
        inherit_judge(network, read_tensors(start_path(start, "judge")))
    plan = Plan(
        steps,
        rate=2e-3 if start == FRESH else 5e-4,
        warm_up=50,
        decay=0.5,
        weight_decay=0.01,
        ema=0.995,
        save_every=300,
    )
    run = Run("judge", {"judge": network}, plan, folder, processes)
    share = batch // processes.size

    def loss() -> torch.Tensor:
        index = torch.randint(scenes, (share,), generator=run.generator)
        mirrored = (torch.rand(share, generator=run.generator) < 0.5)[:, None, None]
        x = images[index].float() / 127.5 - 1
        x = disturb(torch.where(mirrored[..., None], x.flip(-1), x), run.generator).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(x)
        total = torch.zeros((), device=device)
        for name, values in logits.items():
            target = truth[name][index].long()
            target = torch.where(mirrored, target.flip(-1), target).to(device)
            total = total + F.cross_entropy(values.float(), target, ignore_index=IGNORED)
        return total

    run.train(loss)
    if processes.first:
        run.swap_ema()
        facts = {
            "steps": str(run.step),
            "world": WORLD_VERSION,
            "command": "pretraining.tiny_model --stage judge",
        }
        write_tensors(form.path("judge"), dict(network.state_dict()), facts)
