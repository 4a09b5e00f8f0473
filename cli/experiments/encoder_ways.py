"""The ways to make a word of one picture that `encoder-trials` compares, and one trial of one of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.concept import Concept
from ...core.inspection.world.world_evaluation import SIZE, as_training_images, draw, sampled
from ...core.maths.low_rank import low_rank_approximation
from ...core.maths.similarity import unit
from ...core.models.dual_path import DualPath, DualPathModel
from ...core.models.image_encoder import ImageEncoder
from ...core.models.lora import from_lora, to_lora
from ...core.models.low_rank import LowRankDelta, WeightDelta
from ...core.models.protocol import TextToImageModel
from ...core.models.text import encode_prompts
from ...core.models.vocabulary import HardWords, candidates, known_to
from ...core.networks.tuning_encoder import TuningEncoder
from ...core.training.one_picture.footprint import Footprint
from ...core.training.one_picture.predict import predict_concept
from ...core.training.one_picture.tuning import MOST_STEPS, TuneSettings, tune
from ...core.training.presets import DEMO
from ...core.training.trainer import train
from ...core.world import concepts as world
from ...core.world.prompts import held_out_prompts, spread
from ...core.world.render import concept_images
from ..loading import load_tuning_encoder
from .timing import stopwatch
from .trials import Trial, finished, judge

ALPHA = 0.5
RATES = {"lora_learning_rate": 3e-3, "vector_learning_rate": 1e-2}
"""For the bundled model, whose weights are larger than Stable Diffusion's."""
FULL = 0
"""In the place of a rank: the whole weight."""
PLAIN = 4
"""Pictures of the prompt that was tuned on."""
BATCH = 20


@dataclass(frozen=True)
class Way:
    """Predicted and tuned for `steps`, or `inverted` for so many steps of plain TI.

    `dual` tunes and draws over two paths. `rank` is what the predicted LoRA is brought to before it is tuned: None
    leaves the encoder's own factors, `FULL` is the whole weight. `changes` are settings of the tuning.
    """

    name: str
    label: str
    steps: int = 0
    inverted: int = 0
    dual: bool = False
    rank: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def key(self, prompts: int) -> str:
        """For files: the same for ways that do the same."""
        decisive = {**asdict(self), "name": "", "label": "", "prompts": prompts, "rates": RATES, "alpha": ALPHA}
        text = json.dumps([decisive, DEMO.values if self.inverted else None], sort_keys=True, default=str)
        return f"{self.name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


PREDICTED = Way("predicted", "predicted")
TUNED = Way("tuned", f"+ {MOST_STEPS} steps", MOST_STEPS)
WAYS = (
    PREDICTED,
    replace(PREDICTED, name="predicted-dual", label="predicted, dual path", dual=True),
    Way("tuned-4", "+ 4 steps", 4),
    Way("tuned-8", "+ 8 steps", 8),
    TUNED,
    replace(TUNED, name="tuned-free", label="+ 12 steps, no contrastive loss", changes={"contrastive": 0.0}),
    replace(TUNED, name="tuned-dual", label="+ 12 steps, dual path", dual=True),
    Way("ti-12", "plain TI, 12 steps", inverted=12),
    Way("ti-300", "plain TI, 300 steps", inverted=300),
)
WAY_PAIRS = (
    ("predicted", "ti-12"),
    ("predicted", "ti-300"),
    ("tuned", "ti-300"),
    ("tuned-4", "predicted"),
    ("tuned-8", "predicted"),
    ("tuned", "predicted"),
    ("tuned", "tuned-free"),
    ("predicted-dual", "predicted"),
    ("tuned-dual", "tuned"),
)
"""(treated, control)."""
RANKS = (1, 2, 4, 8)
OTHER_RATES = (1e-3, 1e-2)
FULL_RATES = (1e-4, 3e-4, 1e-3)
"""A step of Adam moves all of a whole weight at once, so smaller ones than for factors."""
RANK_WAYS = (
    PREDICTED,
    *(Way(f"predicted-r{rank}", f"predicted, cut to rank {rank}", rank=rank) for rank in RANKS if rank < 4),
    *(replace(TUNED, name=f"tuned-r{rank}", label=f"+ 12 steps at rank {rank}", rank=rank) for rank in RANKS),
    *(
        replace(
            TUNED,
            name=f"tuned-r4-{rate:g}",
            label=f"+ 12 steps at rank 4, rate {rate:g}",
            rank=4,
            changes={"lora_learning_rate": rate},
        )
        for rate in OTHER_RATES
    ),
    *(
        replace(
            TUNED,
            name=f"full-{rate:g}",
            label=f"+ 12 steps, whole weights, rate {rate:g}",
            rank=FULL,
            changes={"lora_learning_rate": rate},
        )
        for rate in FULL_RATES
    ),
)
RANK_PAIRS = (
    ("predicted-r1", "predicted"),
    ("predicted-r2", "predicted"),
    ("tuned-r1", "tuned-r4"),
    ("tuned-r2", "tuned-r4"),
    ("tuned-r8", "tuned-r4"),
    *((f"full-{rate:g}", "tuned-r4") for rate in FULL_RATES),
)


@dataclass(frozen=True)
class EncoderTrial:
    """One word from one picture with the tuning-encoder in `encoder` (None: the bundled one), judged on one picture for
    each of `prompts` evaluation prompts (0: of all)."""

    encoder: Path | None = None
    prompts: int = 0

    def __call__(self, model: TextToImageModel, way: Way, name: str, seed: int) -> Trial:
        images, network = loaded(self.encoder)
        subject = world.CONCEPTS[name]
        references, _, class_word = concept_images(name, 1, seed=seed)
        picture = as_training_images(references)[0]
        footprint, taken = Footprint(model.device), stopwatch(model)
        concept = word(model, images, network, way, name, class_word, picture, seed)
        cost, seconds = footprint.stop(), taken()
        asked = spread(held_out_prompts(subject.background), self.prompts)
        drawing: Callable[..., np.ndarray] = draw_dual if way.dual else draw
        drawn, found = judge(partial(drawing, model, concept=concept), asked, subject, references, seed, PLAIN)
        figures = {
            "method": way.name,
            "concept": name,
            "class_word": class_word,
            "seed": seed,
            **found,
            "hard_token": " ".join(HardWords(model, network.known)(concept.vectors)),
            "nearness": nearness(model, network, concept),
            "norm": float(next(iter(concept.vectors.values())).norm(dim=-1).mean()),
            "numbers": sum(value.numel() for key, value in (concept.lora or {}).items() if not key.endswith("alpha")),
            "seconds": seconds,
            "peak_bytes": cost["peak_bytes"],
        }
        return Trial(concept, drawn, asked, figures)


@cache
def loaded(encoder: Path | None) -> tuple[ImageEncoder, TuningEncoder]:
    """What sees, once a process."""
    return ImageEncoder.tiny(), load_tuning_encoder("tiny", encoder)


def word(
    model: TextToImageModel,
    images: ImageEncoder,
    network: TuningEncoder,
    way: Way,
    name: str,
    class_word: str,
    picture: torch.Tensor,
    seed: int,
) -> Concept:
    """The concept that `way` makes of the picture."""
    if way.inverted:
        settings = DEMO.settings(class_word, name=name, seed=seed, steps=way.inverted, norm_mode="none")
        run = train(model, [picture], settings)
    else:
        start = with_rank(model, predict_concept(model, images, network, picture, name=name), way.rank)
        if not way.steps:
            return start
        alpha = ALPHA if way.dual else None
        chosen = TuneSettings(**{"steps": way.steps, "alpha": alpha, "seed": seed, **RATES, **way.changes})
        run = tune(model, images, network, picture, chosen, predicted=start)
    return finished(run)


def with_rank(model: TextToImageModel, concept: Concept, rank: int | None) -> Concept:
    """The concept with its LoRA's nearest changes of that rank: where it is not below the LoRA's own, the same ones."""
    if rank is None:
        return concept
    changes = {layer: delta.weight() for layer, delta in from_lora(model, concept.lora or {}).items()}
    if rank == FULL:
        deltas = {layer: WeightDelta(change) for layer, change in changes.items()}
    else:
        deltas = {layer: LowRankDelta(*low_rank_approximation(change.mT, rank)) for layer, change in changes.items()}
    return replace(concept, lora=to_lora(model, deltas))


def nearness(model: TextToImageModel, network: TuningEncoder, concept: Concept) -> float:
    """The cosine of the word's vectors with their nearest real words, on average."""
    name, encoder = next(iter(model.text_encoders.items()))
    words = candidates(encoder, known=known_to(network.known, name)).directions
    return float((unit(concept.vectors[name].float()) @ words.float().cpu().mT).amax(dim=1).mean())


def draw_dual(
    model: TextToImageModel, templates: Sequence[str], seeds: Sequence[int], *, concept: Concept
) -> np.ndarray:
    """As `draw`, over both paths: the word and its LoRA beside the plain model with the word's nearest one."""
    pictures = []
    with model.session(), torch.no_grad():
        deltas = from_lora(model, concept.lora or {})
        for start in range(0, len(templates), BATCH):
            part = list(templates[start : start + BATCH])
            soft = model.conditioning(encode_prompts(model, part, vectors=concept.vectors), SIZE)
            hard = model.conditioning(encode_prompts(model, part, words=concept.hard_token), SIZE)
            # Guidance doubles the batch, the empty prompt's half first; only the other has two paths.
            path = DualPath(soft, deltas, ALPHA, rows=slice(len(part), 2 * len(part)))
            own = seeds[start : start + BATCH]
            pictures.append(sampled(DualPathModel(model, path), hard, own))
    return np.concatenate(pictures)
