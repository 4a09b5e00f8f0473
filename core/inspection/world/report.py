"""How well a model draws what a caption says, on captions it has not seen, and how far the judge can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from ...world.captions import BACKGROUND_PHRASES, caption
from ...world.concepts import RESERVED
from ...world.render import render
from ...world.scenes import Scene, sample_scene
from .checks import Judge, Verdict, default_judge

Sampler = Callable[[list[str], int], np.ndarray]
"""`(captions, seed) -> uint8 (n, 128, 128, 3)`."""
SEEDS = 100_000
"""Room for one picture's seed each between one report's seed and the next."""
KEYS = ("background", "subject_colour", "subject_shape", "second_object", "style")


@dataclass(frozen=True)
class Question:
    """A caption and what it says; a property the caption leaves out is None and not judged."""

    text: str
    scene: Scene
    background: str | None
    subject_colour: str | None
    subject_shape: str
    style: str

    def answers(self, verdict: Verdict) -> dict[str, bool]:
        """For every property that the caption says: is it so on the picture?

        `second_object`: where one is asked for, some second object is there. `second_colour` and `second_shape`: it is
        the right one.
        """
        right = {"subject_shape": verdict.subject == self.subject_shape, "style": verdict.style == self.style}
        if self.background:
            right["background"] = verdict.background == self.background
        if self.subject_colour:
            right["subject_colour"] = verdict.subject_colour == self.subject_colour
        if self.scene.second is not None:
            right["second_object"] = verdict.second_present
            right["second_shape"] = verdict.second == self.scene.second.shape
            if self.scene.second.colour in self.text:
                right["second_colour"] = verdict.second_colour == self.scene.second.colour
        else:
            right["nothing_else"] = not verdict.second_present
        return right


def question(scene: Scene, rng: np.random.Generator) -> Question:
    """A caption of `scene` with what it says, told from the caption's own words."""
    text = caption(scene, rng)
    phrases = [phrase for phrase in BACKGROUND_PHRASES[scene.background] if phrase in text]
    says_where, rest = bool(phrases), text
    for phrase in phrases:
        rest = rest.replace(phrase, "")  # "in the blue water" says nothing about the subject
    says_colour = scene.colour in rest.split(f" {scene.subject}")[0].split()
    return Question(
        text,
        scene,
        scene.background if says_where else None,
        scene.colour if says_colour else None,
        scene.subject,
        scene.style,
    )


def seeds_of(seed: int, n: int) -> range:
    """The seeds of the `n` pictures of a report with its own `seed`."""
    return range(SEEDS * seed, SEEDS * seed + n)


def questions(n: int, seed: int) -> list[Question]:
    """`n` held-out captions: scenes from a stream of seeds that no training scene uses."""
    rng = np.random.default_rng([77, seed])
    return [question(sample_scene(rng, RESERVED), rng) for _ in range(n)]


def rates(asked: Sequence[Question], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of pictures on which each property is right, among those whose caption says it."""
    answers = [q.answers(v) for q, v in zip(asked, verdicts, strict=True)]
    names = sorted({name for a in answers for name in a})
    return {name: float(np.mean([a[name] for a in answers if name in a])) for name in names}


def world_report(
    sampler: Sampler,
    n: int = 200,
    seed: int = 0,
    autoencode: Callable[[np.ndarray], np.ndarray] | None = None,
    judge: Judge | None = None,
) -> dict:
    """Prompt following on `n` held-out captions, with fixed seeds.

    Returns the keys `background`, `subject_colour`, `subject_shape`, `second_object`, `style` (and `second_shape`,
    `second_colour`, `nothing_else`): the share right among captions that say it. `judge_on_renders` has the same keys
    for true renders of the same scenes (through `autoencode`, the model's VAE, where given); `shuffled_floor` judges
    each picture against another picture's caption, which is what chance would give. `n` and `seed` are repeated.
    """
    judge = judge or default_judge()
    asked = questions(n, seed)
    drawn = judge.read(sampler([q.text for q in asked], seed))
    renders = np.stack([render(q.scene)[0] for q in asked])
    truth = judge.read(renders if autoencode is None else autoencode(renders))
    return {
        **rates(asked, drawn),
        "judge_on_renders": rates(asked, truth),
        "shuffled_floor": rates(asked[1:] + asked[:1], drawn),
        "n": n,
        "seed": seed,
    }


def to_uint8(decoded: torch.Tensor) -> np.ndarray:
    """Decoded pictures (N, 3, H, W) in -1..1 as uint8 (N, H, W, 3)."""
    return (
        rearrange(((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), "b c h w -> b h w c")
        .cpu()
        .numpy()
    )


def tiny_autoencode(model: object) -> Callable[[np.ndarray], np.ndarray]:
    """Pictures through the model's VAE and back, uint8 to uint8."""

    @torch.no_grad()
    def autoencode(images: np.ndarray) -> np.ndarray:
        out = []
        for start in range(0, len(images), 32):
            part = torch.from_numpy(np.array(images[start : start + 32]))
            x = rearrange(part, "b h w c -> b c h w").float() / 127.5 - 1
            out.append(to_uint8(model.vae.decode(model.vae.encode(x).latents).sample))  # type: ignore[attr-defined]
        return np.concatenate(out)

    return autoencode
