"""Do words look at the right place? Their attention in rendered ConceptWorld scenes, whose masks are exact."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange

from ...maths.statistics import paired_bootstrap
from ...models.lora import from_lora
from ...models.low_rank import apply_deltas
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...models.text import encode_prompts
from ...world.captions import BACKGROUND_PHRASES
from ...world.concepts import CONCEPTS, RESERVED
from ...world.render import render
from ...world.scenes import Scene, sample_scene
from ..attention.maps import AttentionMaps, word_maps
from ..attention.recorder import AttentionRecorder
from ..diagnosis.context_similarity import ContextProbe
from ..diagnosis.symmetric_kl import SIDE, word_pair

TIMESTEPS = (800, 600, 400, 200)
BATCH = 20


@dataclass(frozen=True)
class Asked:
    """A scene, the probe that describes it, and the word that fills its slot where no vectors do."""

    scene: Scene
    probe: ContextProbe
    words: str


@dataclass(frozen=True)
class Shares:
    """What `over_chance` says of every scene, (N, 4): of the layers that are shown, of all together, of each by itself
    and of each timestep in the former; and the subject's part of the picture, (N,)."""

    shown: torch.Tensor
    every: torch.Tensor
    layers: dict[str, torch.Tensor]
    timesteps: dict[int, torch.Tensor]
    area: torch.Tensor


def attention_report(
    model: TextToImageModel,
    scenes: int = 100,
    vectors: Mapping[str, torch.Tensor] | None = None,
    *,
    concept: str | None = None,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
    layers: Mapping[str, torch.Tensor] | None = None,
    lora: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """The share of the subject word's map that lies inside the subject's mask, and of the background word's outside.

    "over_chance" is the share divided by that of an even map (the area), its mean over scenes with its 95 % bootstrap
    interval; 1 is blind. The figures at the top are those of the layers whose maps are 16 x 16 or nearest to it, which
    METHODS.md section 4 shows; also of `all_layers` together, of each of `layers` by itself, and of each timestep in
    the former. The arguments are those of `scene_shares`, which raises.
    """
    learned = {"layers": layers, "lora": lora}
    shares = scene_shares(model, scenes, vectors, concept=concept, timesteps=timesteps, seed=seed, **learned)
    return {
        **summary(shares.shown),
        "all_layers": summary(shares.every),
        "layers": [{"layer": label, **summary(values)} for label, values in shares.layers.items()],
        "timesteps": [{"timestep": timestep, **summary(values)} for timestep, values in shares.timesteps.items()],
        "subject_area": float(shares.area.mean()),
        "scenes": scenes,
        "concept": concept,
        "filled_with": "vectors" if vectors is not None else "class words",
        "seed": seed,
    }


@torch.no_grad()
def scene_shares(
    model: TextToImageModel,
    scenes: int,
    vectors: Mapping[str, torch.Tensor] | None = None,
    *,
    concept: str | None = None,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = 0,
    layers: Mapping[str, torch.Tensor] | None = None,
    lora: Mapping[str, torch.Tensor] | None = None,
) -> Shares:
    """Each rendered scene is noised to every timestep and looked at once with "a photo of a {} in the snow".

    Without `concept` the subjects are ordinary ones, called by their class; with it they are that held-out concept,
    called by the learned `vectors`, or by its class word where there are none. What else was learned with these is in
    force: `layers`, vectors of every layer as in `encode_prompts`, and a `lora`. Raises ValueError where vectors come
    without their concept, or there are fewer than two scenes.
    """
    if vectors is not None and concept is None:
        raise ValueError("say which held-out concept the vectors are for: concept='goblet', say")
    if scenes < 2:
        raise ValueError("ask for two scenes at least; of one there is no interval")
    asked = questions(scenes, seed, concept)
    drawn = [render(one.scene) for one in asked]
    masks = torch.from_numpy(np.stack([mask.subject for _, mask in drawn])).float()
    parts: list[Shares] = []
    with model.session(), apply_deltas(model, from_lora(model, lora) if lora else {}):
        for start in range(0, scenes, BATCH):
            part = slice(start, min(start + BATCH, scenes))
            pictures = torch.from_numpy(np.stack([picture for picture, _ in drawn[part]]))
            maps = attended(model, pictures, asked[part], vectors, timesteps, seed + start, layers)
            pairs = [word_pair(model, one.probe, vectors, None if vectors else one.words) for one in asked[part]]
            parts.append(shares_of(maps, pairs, masks[part], sorted(timesteps, reverse=True)))
    return Shares(
        shown=torch.cat([one.shown for one in parts]),
        every=torch.cat([one.every for one in parts]),
        layers={label: torch.cat([one.layers[label] for one in parts]) for label in parts[0].layers},
        timesteps={t: torch.cat([one.timesteps[t] for one in parts]) for t in parts[0].timesteps},
        area=masks.mean(dim=(1, 2)),
    )


def shares_of(
    maps: AttentionMaps, pairs: Sequence[tuple[list[int], list[int]]], inside: torch.Tensor, timesteps: Sequence[int]
) -> Shares:
    """Of some pictures. `maps` has a bin for each of `timesteps`."""
    shown = maps.layers_of(side=SIDE)
    return Shares(
        shown=over_chance(maps, pairs, inside, layers=shown),
        every=over_chance(maps, pairs, inside),
        layers={
            f"{group.label} ({group.layers[0]})": over_chance(maps, pairs, inside, layers=[index])
            for index, group in enumerate(maps.groups)
        },
        timesteps={
            timestep: over_chance(maps, pairs, inside, layers=shown, steps=stretch)
            for timestep, stretch in zip(timesteps, maps.bins, strict=True)
        },
        area=inside.mean(dim=(1, 2)),
    )


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
    layers: Mapping[str, torch.Tensor] | None = None,
) -> AttentionMaps:
    """Maps of uint8 pictures (B, H, W, 3) noised to each timestep, a bin each, the earliest in the sampling first."""
    size = ImageSize(*(int(side) for side in pictures.shape[1:3]))
    latents = model.to_latents(rearrange(pictures, "b h w c -> b c h w").float() / 127.5 - 1)
    encodings = [
        encode_prompts(
            model, [one.probe.template], vectors=vectors, words=None if vectors else one.words, layers=layers
        )
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
        (heat,) = word_maps(maps.of_image(index), pair, layers=layers, steps=steps, size=tuple(mask.shape)).cpu()
        subject, background = share(heat[0], mask), share(heat[1], 1 - mask)
        found.append(torch.stack([subject, subject / mask.mean(), background, background / (1 - mask).mean()]))
    return torch.stack(found)


def share(heat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The part of a map's mass that lies in a mask, both (H, W)."""
    return (heat * mask).sum() / heat.sum()


def summary(values: torch.Tensor, groups: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Means over scenes (N, 4) with 95 % bootstrap intervals of those over chance; `groups` (say, each scene's concept)
    are drawn before the scenes in them."""
    inside, ratio, outside, outside_ratio = values.double().mean(dim=0).tolist()
    of_subject, of_background = (interval(values[:, at], groups) for at in (1, 3))
    return {
        "subject_inside": inside,
        "subject_over_chance": ratio,
        "subject_over_chance_interval": of_subject,
        "subject_twice_chance": float((values[:, 1] >= 2).double().mean()),
        "background_outside": outside,
        "background_over_chance": outside_ratio,
        "background_over_chance_interval": of_background,
        "background_better_than_chance": float((values[:, 3] > 1).double().mean()),
    }


def interval(values: torch.Tensor, groups: Sequence[Hashable] | None = None) -> list[float]:
    """The ends of the 95 % bootstrap interval of the mean of values (N,)."""
    found = paired_bootstrap(values.numpy(), np.zeros(len(values)), groups=groups)
    return [found.low, found.high]
