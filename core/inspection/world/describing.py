"""How far words get: two colours laid out as a caption says, and held-out concepts that are only described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...world.captions import BACKGROUND_PHRASES, in_words
from ...world.concepts import CONCEPTS, RESERVED, TEN, WorldConcept
from ...world.prompts import EvaluationPrompt, held_out_prompts, spread
from ...world.render import concept_images, render
from ...world.scenes import Scene, sample_scene
from ...world.two_colours import LAID, laid_out
from .checks import Judge, Verdict
from .report import Sampler
from .world_evaluation import obeys, score


@dataclass(frozen=True)
class Figure:
    """A subject in two colours that stands alone, and a caption that says them and how they lie."""

    text: str
    scene: Scene

    def right(self, image: np.ndarray, mask: np.ndarray) -> bool:
        """Whether the two colours lie on the figure of `image` as the caption says."""
        return laid_out(image, mask, self.scene.colour, self.scene.second_colour) == self.scene.texture


def figures(n: int, seed: int) -> list[Figure]:
    """`n` photos of one thing in two colours, all textures in turn; no caption imitates a held-out concept."""
    rng = np.random.default_rng([78, seed])
    out = []
    for index in range(n):
        alone = {"texture": LAID[index % len(LAID)], "second": None, "worn": "", "style": "photo", "place": "centre"}
        scene = replace(sample_scene(rng, RESERVED), **alone)
        words = in_words(scene.subject, scene.texture, scene.colour, scene.second_colour)
        out.append(Figure(f"a photo of {words} {BACKGROUND_PHRASES[scene.background][0]}", scene))
    return out


def two_colours(
    sampler: Sampler, judge: Judge, n: int, seed: int, autoencode: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, Any]:
    """Share of `n` pictures on which two colours lie as the caption says: `right`, and by texture; `on_renders` is the
    same for true renders (through `autoencode` where given), and says how far the check can be trusted."""
    asked = figures(n, seed)
    renders = np.stack([render(one.scene)[0] for one in asked])
    drawn = laid(asked, judge, sampler([one.text for one in asked], seed))
    truth = laid(asked, judge, renders if autoencode is None else autoencode(renders))
    textures = {
        texture: float(np.mean(found))
        for texture in LAID
        if (found := [right for one, right in zip(asked, drawn, strict=True) if one.scene.texture == texture])
    }
    return {"right": float(np.mean(drawn)), **textures, "on_renders": float(np.mean(truth)), "n": n}


def laid(asked: list[Figure], judge: Judge, images: np.ndarray) -> list[bool]:
    """For each picture whether its colours are laid out as asked."""
    verdicts = judge.read(images)
    return [one.right(image, verdict.subject_mask) for one, image, verdict in zip(asked, images, verdicts, strict=True)]


def prompts_in_words(concept: WorldConcept, count: int = 0) -> list[EvaluationPrompt]:
    """Prompts for places that no regularizer names, with the concept's class, colours and texture in words (its parts
    have none): `count` of them, evenly spread, or all for 0."""
    words = in_words(concept.super_category, concept.texture, concept.colour, concept.second_colour)
    without_article = words.partition(" ")[2]
    return [
        replace(prompt, text=prompt.text.replace("a {}", words).replace("{}", without_article))
        for prompt in spread(held_out_prompts(concept.background), count)
    ]


def described(sampler: Sampler, judge: Judge, seed: int, count: int = 0) -> dict[str, Any]:
    """How far describing words alone reach the ten held-out concepts, whose parts have no words.

    Of each concept, and their means: `fidelity`, `recognised` and `composed` as of `WorldScore`; `looks`, the share of
    pictures with the class and both colours laid out as the words say; `worded`, those that obey the prompt as well.
    """
    found: dict[str, dict[str, float]] = {}
    for concept in (CONCEPTS[name] for name in TEN):
        prompts = prompts_in_words(concept, count)
        pictures = sampler([prompt.text for prompt in prompts], seed)
        verdicts = judge.read(pictures)
        references, _, _ = concept_images(concept.name)
        judged = score(pictures, prompts, concept, references, judge=judge, verdicts=verdicts).figures()
        looks = [looking_like(concept, *one) for one in zip(prompts, pictures, verdicts, strict=True)]
        obeyed = obeys(prompts, verdicts)
        found[concept.name] = {
            **{key: judged[key] for key in ("fidelity", "recognised", "composed")},
            "looks": float(np.mean(looks)),
            "worded": float(np.mean(np.logical_and(looks, obeyed))),
        }
    means = {key: float(np.mean([one[key] for one in found.values()])) for key in next(iter(found.values()))}
    return {**means, "prompts": count or "all", "concepts": found}


def looking_like(concept: WorldConcept, prompt: EvaluationPrompt, image: np.ndarray, verdict: Verdict) -> bool:
    """Whether all is there that has words: the class (or the concept itself), both colours, and how they lie. A sketch
    or large pixels change colours, so that the class is enough there."""
    if verdict.subject not in (concept.super_category, concept.subject):
        return False
    if prompt.style:
        return True
    return laid_out(image, verdict.subject_mask, concept.colour, concept.second_colour) == concept.texture
