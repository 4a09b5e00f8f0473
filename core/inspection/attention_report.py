"""Do words look at the right place? Their attention in rendered ConceptWorld scenes, whose masks are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..models.protocol import Conditioning, ImageSize, TextToImageModel
from ..models.text import encode_prompts
from ..world.captions import BACKGROUND_PHRASES
from ..world.concepts import CONCEPTS, RESERVED
from ..world.render import render
from ..world.scenes import Scene, sample_scene
from .attention import AttentionRecorder
from .attention_maps import AttentionMaps, word_maps
from .diagnostics import ContextProbe
from .symmetric_kl import SIDE, word_pair

TIMESTEPS = (800, 600, 400, 200)
BATCH = 20


@dataclass(frozen=True)
class Asked:
    """A scene, the probe that describes it, and the word that fills its slot where no vectors do."""

    scene: Scene
    probe: ContextProbe
    words: str


@torch.no_grad()
def attention_report(
    model: TextToImageModel,
    scenes: int = 100,
    vectors: Mapping[str, torch.Tensor] | None = None,
    *,
    concept: str | None = None,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
) -> dict[str, Any]:
    """The share of the subject word's map that lies inside the subject's mask, and of the background word's outside.

    Each rendered scene is noised to every timestep and looked at once with "a photo of a {} in the snow". Without
    `concept` the subjects are ordinary ones, called by their class; with it they are that held-out concept, called by
    the learned `vectors`, or by its class word where there are none. "over_chance" is the share divided by that of an
    even map (the area), its mean over scenes; 1 is blind. The figures at the top are those of the layers whose maps are
    16 x 16 or nearest to it, which METHODS.md section 4 shows; also of `all_layers` together, of each of `layers` by
    itself, and of each timestep in the former.

    Raises ValueError where vectors come without their concept.
    """
    if vectors is not None and concept is None:
        raise ValueError("say which held-out concept the vectors are for: concept='goblet', say")
    asked = questions(scenes, seed, concept)
    drawn = [render(one.scene) for one in asked]
    masks = torch.from_numpy(np.stack([mask.subject for _, mask in drawn])).float()
    whole: list[torch.Tensor] = []
    every: list[torch.Tensor] = []
    by_layer: list[list[torch.Tensor]] = []
    by_timestep: list[list[torch.Tensor]] = []
    labels: list[str] = []
    with model.session():
        for start in range(0, scenes, BATCH):
            part = slice(start, min(start + BATCH, scenes))
            pictures = torch.from_numpy(np.stack([picture for picture, _ in drawn[part]]))
            maps = attended(model, pictures, asked[part], vectors, timesteps, seed + start)
            pairs = [word_pair(model, one.probe, vectors, None if vectors else one.words) for one in asked[part]]
            labels = [f"{group.label} ({group.layers[0]})" for group in maps.groups]
            inside, shown = masks[part], maps.layers_of(side=SIDE)
            whole.append(over_chance(maps, pairs, inside, layers=shown))
            every.append(over_chance(maps, pairs, inside))
            by_layer.append([over_chance(maps, pairs, inside, layers=[g]) for g in range(len(maps.groups))])
            by_timestep.append([over_chance(maps, pairs, inside, layers=shown, steps=stretch) for stretch in maps.bins])
    return {
        **_means(torch.cat(whole)),
        "all_layers": _means(torch.cat(every)),
        "layers": [
            {"layer": label, **_means(torch.cat(values))}
            for label, values in zip(labels, zip(*by_layer, strict=True), strict=True)
        ],
        "timesteps": [
            {"timestep": timestep, **_means(torch.cat(values))}
            for timestep, values in zip(sorted(timesteps, reverse=True), zip(*by_timestep, strict=True), strict=True)
        ],
        "subject_area": float(masks.mean()),
        "scenes": scenes,
        "concept": concept,
        "filled_with": "vectors" if vectors is not None else "class words",
        "seed": seed,
    }


def questions(scenes: int, seed: int, concept: str | None = None) -> list[Asked]:
    """Photographs of one subject each, with a prompt that names it and the place."""
    rng = np.random.default_rng([seed, 4])
    asked = []
    for _ in range(scenes):
        scene = replace(sample_scene(rng, RESERVED), style="photo", second=None, worn="")
        words = scene.subject
        if concept is not None:
            scene, words = replace(scene, subject=CONCEPTS[concept].subject), CONCEPTS[concept].super_category
        phrases = BACKGROUND_PHRASES[scene.background]
        phrase = phrases[int(rng.integers(len(phrases)))]
        asked.append(Asked(scene, ContextProbe(f"a photo of a {{}} {phrase}", phrase.split()[-1], ""), words))
    return asked


def attended(
    model: TextToImageModel,
    pictures: torch.Tensor,
    asked: Sequence[Asked],
    vectors: Mapping[str, torch.Tensor] | None,
    timesteps: Sequence[int],
    seed: int,
) -> AttentionMaps:
    """Maps of uint8 pictures (B, H, W, 3) noised to each timestep, a bin each, the earliest in the sampling first."""
    size = ImageSize(*(int(side) for side in pictures.shape[1:3]))
    latents = model.to_latents(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    encodings = [
        encode_prompts(model, [one.probe.template], vectors=vectors, words=None if vectors else one.words)
        for one in asked
    ]
    conditioning = Conditioning.cat([model.conditioning(encoding, size) for encoding in encodings])
    recorder, latent_size = AttentionRecorder(bins=len(timesteps)), (int(latents.shape[2]), int(latents.shape[3]))
    recorder.begin(model.cross_attention_layers())
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    for index, timestep in enumerate(sorted(timesteps, reverse=True)):
        alpha_bar = float(model.schedule.alpha_bar[timestep])
        noisy = alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise
        ticks = torch.full((len(latents),), timestep, dtype=torch.long, device=latents.device)
        watch = recorder.watch((index + 0.5) / len(timesteps), {"prompt": [slice(None)]}, latent_size)
        model.predict(noisy, ticks, conditioning, watch)
    recorder.finish()
    return recorder.maps()


def over_chance(
    maps: AttentionMaps,
    pairs: Sequence[tuple[list[int], list[int]]],
    inside: torch.Tensor,
    *,
    layers: Sequence[int] | None = None,
    steps: tuple[float, float] = (0.0, 1.0),
) -> torch.Tensor:
    """Of each picture (B, 4): the subject word's share inside `inside` (B, H, W), that over the mask's area, the
    background word's share outside, and that over the area outside."""
    found = []
    for index, pair in enumerate(pairs):
        mask = inside[index]
        heat = word_maps(maps, pair, layers=layers, steps=steps, size=tuple(mask.shape))[index].cpu()
        subject, background = share(heat[0], mask), share(heat[1], 1 - mask)
        found.append(torch.stack([subject, subject / mask.mean(), background, background / (1 - mask).mean()]))
    return torch.stack(found)


def share(heat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The part of a map's mass that lies in a mask, both (H, W)."""
    return (heat * mask).sum() / heat.sum()


def _means(values: torch.Tensor) -> dict[str, float]:
    inside, ratio, outside, outside_ratio = values.double().mean(dim=0).tolist()
    return {
        "subject_inside": inside,
        "subject_over_chance": ratio,
        "subject_twice_chance": float((values[:, 1] >= 2).double().mean()),
        "background_outside": outside,
        "background_over_chance": outside_ratio,
        "background_better_than_chance": float((values[:, 3] > 1).double().mean()),
    }
