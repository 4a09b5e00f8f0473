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
from .context_similarity import ContextProbe, word_stretch

SIDE = 16
"""The MLM paper's layers are those with maps of 16 x 16."""


Read = tuple[str, int]
"""The text encoder that attention maps are looked at with, and the number of its first token in them."""


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
            maps, read = _maps_of(model, part, filling, sampling, seeds)
            for index, probe in enumerate(part):
                pair = word_pair(model, probe, filling.vectors, filling.words, read)
                found.append(_divergences(maps, index, pair))
    return torch.stack(found)


def _maps_of(
    model: TextToImageModel,
    probes: Sequence[ContextProbe],
    filling: Filling,
    sampling: Sampling,
    seeds: Sequence[int],
) -> tuple[AttentionMaps, Read]:
    """The last step's maps of one picture of each probe's prompt, and by whom their tokens are read."""
    size = sampling.size or ImageSize(128, 128)
    templates = [probe.template for probe in probes]
    encodings = encode_prompts(model, templates, vectors=filling.vectors, words=filling.words, layers=filling.layers)
    positive = model.conditioning(encodings, size)
    negative = model.conditioning(encode_prompts(model, [""]), size)
    options = {"steps": sampling.steps, "guidance": sampling.guidance, "seeds": seeds}
    return last_step_maps(model, positive, negative, size, **options), read_by(model, positive)


def _divergences(maps: AttentionMaps, picture: int, pair: tuple[list[int], list[int]]) -> torch.Tensor:
    """Of one picture, (2,), raw and normalised, between a concept and a context word at these tokens."""
    concept, context = pair
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
    read: Read | None = None,
) -> tuple[list[int], list[int]]:
    """The tokens of the concept and of the probe's context word in attention maps that are of what `read` reads: of the
    first text encoder, where nothing else is said."""
    name, first = read or (next(iter(model.text_encoders)), 0)
    encoder = model.text_encoders[name]
    rows = None if vectors is None else int(vectors[name].shape[0])
    prompt = tokenize_prompt(encoder, probe.template, rows=rows, words=words)
    context = word_stretch(encoder, prompt, probe.word)
    return [first + place for place in prompt.fill], [first + place for place in context]


def read_by(model: TextToImageModel, conditioning: Conditioning) -> Read | None:
    """Of a model with several text encoders whose tokens follow one another, the last, which is the largest; None for
    others."""
    attended = getattr(model, "attended", None)
    return None if attended is None else list(attended(conditioning).items())[-1]
