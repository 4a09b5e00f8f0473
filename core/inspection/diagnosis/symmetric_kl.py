"""SKL: how differently a word and the words beside it look at the picture (METHODS.md 2.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange

from ...maths.similarity import pixel_symmetric_kl, symmetric_kl
from ...models.protocol import Conditioning, ImageSize, TextToImageModel
from ...models.sampling import sample
from ...models.text import encode_prompts
from ...prompts.tokens import tokenize_prompt
from ..attention.maps import AttentionMaps, word_maps
from ..attention.recorder import AttentionRecorder
from .context_similarity import ContextProbe, word_position

SIDE = 16
"""The MLM paper's layers are those with maps of 16 x 16."""


class SymmetricKL(NamedTuple):
    """Means over prompts and pictures. `raw` of the maps as they are, `normalised` of maps that sum to one over the
    pixels, in nats; the paper's code was seen with both (METHODS.md 2.7)."""

    raw: float
    normalised: float


@dataclass(frozen=True)
class Filling:
    """What fills a prompt: `vectors` of a concept, with its `layers` where it has them, as in `encode_prompts`; or
    plain `words`."""

    vectors: Mapping[str, torch.Tensor] | None = None
    words: str | None = None
    layers: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn: `images` of each prompt by DDIM, picture i of all with seed `seed` + i, `batch` at once,
    of `size`, 128 x 128 unless given."""

    size: ImageSize | None = None
    images: int = 1
    steps: int = 25
    guidance: float = 4.0
    seed: int = 0
    batch: int = 20


@torch.no_grad()
def skl(
    model: TextToImageModel, probes: Sequence[ContextProbe], filling: Filling, sampling: Sampling | None = None
) -> SymmetricKL:
    """METHODS.md 2.7 between the map of what fills the prompts and their context word's.

    Only the conditional half of the last step is looked at, in the layers whose maps are 16 x 16 or nearest to it,
    averaged over layers and heads. A concept of several vectors is the mean of their maps; of a context word of several
    tokens each counts alone, and the mean of the divergences is taken.

    Raises ValueError where there are no probes or a probe's word is not in its prompt.
    """
    each = skl_of_each(model, probes, filling, sampling or Sampling())
    return SymmetricKL(*(float(value) for value in each.double().mean(dim=0)))


@torch.no_grad()
def skl_of_each(
    model: TextToImageModel, probes: Sequence[ContextProbe], filling: Filling, sampling: Sampling
) -> torch.Tensor:
    """`skl` of every picture: (probes * images, 2), raw and normalised; a probe's pictures are neighbours."""
    if not probes or sampling.images < 1:
        raise ValueError("no probes: give at least one prompt with a context word, and one picture or more")
    asked = [probe for probe in probes for _ in range(sampling.images)]
    found = []
    with model.session():
        for start in range(0, len(asked), sampling.batch):
            part = asked[start : start + sampling.batch]
            seeds = [sampling.seed + start + index for index in range(len(part))]
            maps = _maps_of(model, part, filling, sampling, seeds)
            found += [_divergences(model, maps, index, probe, filling) for index, probe in enumerate(part)]
    return torch.stack(found)


def _maps_of(
    model: TextToImageModel,
    probes: Sequence[ContextProbe],
    filling: Filling,
    sampling: Sampling,
    seeds: Sequence[int],
) -> AttentionMaps:
    """The last step's maps of one picture of each probe's prompt."""
    size = sampling.size or ImageSize(128, 128)
    templates = [probe.template for probe in probes]
    encodings = encode_prompts(model, templates, vectors=filling.vectors, words=filling.words, layers=filling.layers)
    positive = model.conditioning(encodings, size)
    negative = model.conditioning(encode_prompts(model, [""]), size)
    return last_step_maps(
        model, positive, negative, size, steps=sampling.steps, guidance=sampling.guidance, seeds=seeds
    )


def _divergences(
    model: TextToImageModel, maps: AttentionMaps, picture: int, probe: ContextProbe, filling: Filling
) -> torch.Tensor:
    """Of one picture, (2,): raw and normalised."""
    concept, context = word_pair(model, probe, filling.vectors, filling.words)
    words = [concept, *([at] for at in context)]
    own = rearrange(word_maps(maps, words, layers=maps.layers_of(side=SIDE))[picture], "words h w -> words (h w)")
    one, others = own[:1].expand(len(context), -1), own[1:]
    both = [measure(one, others).mean() for measure in (symmetric_kl, pixel_symmetric_kl)]
    return torch.stack(both).cpu()


def last_step_maps(
    model: TextToImageModel,
    positive: Conditioning,
    negative: Conditioning,
    size: ImageSize,
    *,
    steps: int,
    guidance: float,
    seeds: Sequence[int],
) -> AttentionMaps:
    """Sample a picture a seed and keep the attention of the last step's conditional half."""
    latent_size = (size.height // model.latent_factor, size.width // model.latent_factor)
    recorder = AttentionRecorder(bins=1)
    watch = recorder.sampling(model.cross_attention_layers(), latent_size, last_step=True)
    shape = (len(seeds), model.latent_channels, *latent_size)
    sample(model, positive, negative, shape=shape, steps=steps, guidance=guidance, seed=seeds, probe=watch)
    return recorder.maps()


def word_pair(
    model: TextToImageModel,
    probe: ContextProbe,
    vectors: Mapping[str, torch.Tensor] | None,
    words: str | None,
) -> tuple[list[int], list[int]]:
    """Positions of the concept and of the probe's context word, as the first text encoder counts them."""
    name, encoder = next(iter(model.text_encoders.items()))
    rows = None if vectors is None else int(vectors[name].shape[0])
    prompt = tokenize_prompt(encoder, probe.template, rows=rows, words=words)
    at = word_position(encoder, prompt, probe.word)
    return list(prompt.fill), list(range(at, at + len(encoder.tokenize(probe.word))))
