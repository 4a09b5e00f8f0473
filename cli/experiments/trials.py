"""One trial: train a word for a held-out concept of ConceptWorld one way, then judge what it draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ...core.concept import Concept
from ...core.inspection.diagnosis.context_similarity import context_similarity
from ...core.inspection.diagnosis.symmetric_kl import Filling, Sampling, skl
from ...core.inspection.world.checks import Judge
from ...core.inspection.world.world_evaluation import as_training_images, context_probes, draw, score, with_lora
from ...core.maths.mlm import RHO
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.models.tiny import load_tiny
from ...core.prompts.rich import ListedPrompts
from ...core.prompts.sets import built_in_set
from ...core.training.methods import METHODS
from ...core.training.plan import Choices, Prior, plan
from ...core.training.presets import DEMO, Preset, demo_preset, recipes
from ...core.training.regularizers.context import recommended_weights
from ...core.training.regularizers.mlm import recommended_batch, recommended_lambda
from ...core.training.regularizers.registry import Added
from ...core.training.run.events import Finished, Step
from ...core.training.trainer import TrainingRun
from ...core.world import concepts as world
from ...core.world.prompts import EvaluationPrompt, held_out_prompts
from ...core.world.render import concept_images
from .resuming import keep, kept, read_kept
from .timing import stopwatch

Watch = Callable[[Step], None]
PICTURES = 4
"""Training pictures of a concept, as a user would have."""
PLAIN = 6
"""Pictures of the prompt that was trained on, to see whether the word was learned at all."""
CHOICES = tuple(product((False, True), repeat=2))
"""Without and with MLM, without and with CoRe."""
CLASS_SEED = 0
"""Of prior preservation's class pictures: the same for every training seed."""


@dataclass(frozen=True)
class Arm:
    """A way to train a word: `core` is lambda_emb and lambda_attn (METHODS.md C4), `mlm` is lambda, rho and, where it
    is not the usual one, the number of prompts a step (METHODS.md 2.6); None where the arm does without. `prior` is
    how many pictures of the class preserve what its word means. `changes` are settings other than those of `recipe`,
    and `further` are regularizers beside CoRe and MLM."""

    name: str
    label: str
    core: tuple[float, float] | None = None
    mlm: tuple[float, float] | tuple[float, float, int] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    prior: int = 0
    recipe: str = DEMO.name
    further: tuple[Added, ...] = ()

    @property
    def base(self) -> Preset:
        """The recipe."""
        return recipes()[self.recipe]

    @property
    def beyond(self) -> list[Any]:
        """What decides a trial beside the training: nothing."""
        return []


@dataclass(frozen=True)
class Trial:
    """What came of it: the word, the judged pictures, and plain figures."""

    concept: Concept
    pictures: np.ndarray
    prompts: Sequence[EvaluationPrompt]
    figures: dict[str, Any]


def plain_inversion(model: DiffusersModel, **changes: Any) -> Arm:
    """Textual inversion without any regularizer, hence also without CoRe's hold on the vector's length."""
    return Arm("ti", "plain TI", changes={"norm_mode": "none", **changes})


def core_inversion(model: DiffusersModel, **changes: Any) -> Arm:
    """Textual inversion with CoRe at the weights recommended for the model."""
    return Arm("core", "CoRe", core=_weights(model), changes=changes)


def _weights(model: DiffusersModel, method: str = "ti") -> tuple[float, float]:
    weights = recommended_weights(model, method)
    return weights.embedding, weights.attention


def mlm_inversion(model: DiffusersModel, **changes: Any) -> Arm:
    """Textual inversion with MLM at the weight recommended for the model."""
    weight = recommended_lambda(model)
    return Arm("mlm", "MLM", mlm=(weight, RHO), changes={"norm_mode": "none", **changes})


def combined(model: DiffusersModel, kind: str, label: str, *, core: bool, mlm: bool) -> Arm:
    """What `kind` of `METHODS` trains, by the bundled model's recipe for it, without or with CoRe and MLM at the
    weights recommended for the model. Without prior preservation (docs/claims_first_model.md says why)."""
    changes = {key: value for key, value in demo_preset(kind).values.items() if DEMO.values.get(key) != value}
    added = {"core": ("CoRe", core), "mlm": ("MLM", mlm)}
    batch = [recommended_batch(kind)] if METHODS[kind].learns_copies else []
    return Arm(
        "_".join([kind, *(name for name, (_, wanted) in added.items() if wanted)]),
        " + ".join([label, *(title for title, wanted in added.values() if wanted)]),
        core=_weights(model, kind) if core else None,
        mlm=(recommended_lambda(model, kind), RHO, *batch) if mlm else None,
        # CoRe's hold on the vectors' length belongs to CoRe.
        changes=changes if core else {**changes, "norm_mode": "none"},
    )


def demo_model() -> DiffusersModel:
    """The bundled model behind the protocol."""
    return DiffusersModel.from_tiny(load_tiny())


def run_trial(model: DiffusersModel, arm: Arm, name: str, seed: int) -> Trial:
    """Train `arm` on `PICTURES` pictures of the held-out concept `name` and judge one picture a prompt.

    Seeds are paired: two arms with the same `seed` see the same noise in training and start their pictures from the
    same noise. `seconds` is the training alone.
    """
    subject = world.CONCEPTS[name]
    references, _, class_word = concept_images(name, PICTURES, seed=seed)
    taken = stopwatch(model)
    concept = learn(model, arm, name, class_word, references, seed)
    seconds = taken()
    prompts = held_out_prompts(subject.background)
    pictures, found = judge(partial(draw, model, concept=concept), prompts, subject, references, seed, PLAIN)
    figures = {
        "method": arm.name,
        "concept": name,
        "class_word": class_word,
        "seed": seed,
        **found,
        **diagnosis(model, concept, seed),
        "norm": float(next(iter(concept.vectors.values())).norm(dim=-1).mean()),
        "seconds": seconds,
        "core": arm.core,
        "mlm": arm.mlm,
    }
    return Trial(concept, pictures, prompts, figures)


def judge(
    drawing: Callable[[Sequence[str], Sequence[int]], np.ndarray],
    prompts: Sequence[EvaluationPrompt],
    subject: world.Concept,
    references: np.ndarray,
    seed: int,
    plain: int = 0,
    reader: Judge | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """What `drawing` makes of templates and seeds: a picture for each prompt and what they show; under "plain_prompt"
    what `plain` pictures of the prompt that was trained on show, where any are asked for. `reader` reads them, the
    bundled judge unless given."""
    seeds = [1000 * seed + index for index in range(len(prompts))]
    pictures = drawing([prompt.text for prompt in prompts], seeds)
    figures: dict[str, Any] = score(pictures, prompts, subject, references, judge=reader).figures()
    if plain:
        near = [EvaluationPrompt("a photo of a {}")] * plain
        drawn = drawing([prompt.text for prompt in near], [1000 * seed + 500 + index for index in range(plain)])
        figures["plain_prompt"] = score(drawn, near, subject, references, judge=reader).figures()
    return pictures, figures


def diagnosis(model: DiffusersModel, concept: Concept, seed: int) -> dict[str, float]:
    """sim1, sim2 and SKL (METHODS.md 2.7), of a word with vectors of every layer the mean over what each layer sees."""
    word = {"vectors": concept.vectors, "layers": concept.layer_vectors}
    with with_lora(model, concept):
        divergence = skl(model, context_probes()[::2], Filling(**word), Sampling(seed=1000 * seed + 900))
    return {**similarities(model, concept), "skl": divergence.raw, "skl_pixels": divergence.normalised}


def similarities(model: DiffusersModel, concept: Concept) -> dict[str, float]:
    """sim1 and sim2 alone, which take no sampling."""
    with with_lora(model, concept):
        word = {"vectors": concept.vectors, "layers": concept.layer_vectors}
        context = context_similarity(model, context_probes(), **word)
    return {"sim1": context.sim1, "sim2": context.sim2}


def learn(
    model: DiffusersModel,
    arm: Arm,
    name: str,
    class_word: str,
    pictures: np.ndarray,
    seed: int,
    watch: Watch | None = None,
    prompts: Sequence[str] | None = None,
) -> Concept:
    """The training of a trial. `prompts` stand in for the regularizers' own sets."""
    return finished(training(model, arm, name, class_word, pictures, seed, prompts), watch)


def finished(run: TrainingRun, watch: Watch | None = None) -> Concept:
    """What a training ends with; `watch` hears of every step."""
    with run:
        for event in run:
            if isinstance(event, Step) and watch is not None:
                watch(event)
            if isinstance(event, Finished):
                return event.concept
    raise RuntimeError("the training ended without a result")


def training(
    model: DiffusersModel,
    arm: Arm,
    name: str,
    class_word: str,
    pictures: np.ndarray,
    seed: int,
    prompts: Sequence[str] | None = None,
) -> TrainingRun:
    """The training of a trial, not begun."""
    images = list(as_training_images(pictures))
    return plan(model, choices(arm, name, class_word, seed, prompts)).begin(model, images)


def choices(arm: Arm, name: str, class_word: str, seed: int, prompts: Sequence[str] | None = None) -> Choices:
    """What the arm is, as choices of a training. No prompt of it names a background of the evaluation."""
    return Choices(
        arm.base,
        class_word,
        {"name": name, "seed": seed, **arm.changes},
        added(arm, prompts),
        prior=Prior(float(arm.prior > 0), arm.prior, CLASS_SEED),
    )


def added(arm: Arm, prompts: Sequence[str] | None = None) -> list[Added]:
    """The arm's regularizers; `prompts` stand in for the own sets of CoRe and MLM."""
    found = []
    if arm.core is not None:
        weights = dict(zip(("embedding_weight", "attention_weight"), arm.core, strict=True))
        found.append(Added("core", {"prompts": tuple(prompts or built_in_set("concept_world").prompts), **weights}))
    if arm.mlm is not None:
        # The number of prompts, where the arm names none, is the paper's for a word alone.
        weight, rho, batch = (*arm.mlm, recommended_batch())[:3]
        listed = ListedPrompts(tuple(prompts)) if prompts else None
        found.append(Added("mlm", {"prompts": listed, "weight": weight, "rho": rho, "batch": batch}))
    return [*found, *arm.further]


def cached_trial(folder: Path, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a trial from `folder`, or made now and kept there, so that a long comparison can be resumed."""
    if kept(folder, key):
        return read_kept(folder, key)
    figures = run()
    keep(folder, key, figures)
    return figures


def arm_key(arm: Arm) -> str:
    """A short name for files: the same for arms that train the same way, whatever they are called."""
    import hashlib

    decisive: list[Any] = [arm.core, arm.mlm, {**arm.base.values, **arm.changes}]
    decisive += [arm.prior] if arm.prior else []
    decisive += [[one.name, one.options] for one in arm.further]
    decisive += arm.beyond
    text = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class Comparison:
    """Arms that are trained on the same cells, and the pairs of them that are compared: (treated, control)."""

    name: str
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str], ...]
    trial: Callable[..., Trial] = run_trial
    more: Callable[[Sequence[Arm], Sequence[dict[str, Any]]], list[str]] | None = None
    """Tables of its own, of its arms and trials."""
    leads: Callable[[Sequence[Arm], Sequence[dict[str, Any]]], list[str]] | None = None
    """The same, before all others."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is published beside its trials."""
    prepared: Callable[[DiffusersModel, Path, Path], Comparison] | None = None
    """What it becomes of the model, the folder of its trials and that of earlier results, before it begins."""
