"""One trial: train a word for a held-out concept of ConceptWorld one way, then judge what it draws."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...core.concept import Concept
from ...core.inspection.diagnostics import context_similarity
from ...core.inspection.symmetric_kl import Filling, Sampling, skl
from ...core.inspection.world.world_evaluation import (
    SIZE,
    as_training_images,
    context_probes,
    draw,
    score,
    with_lora,
)
from ...core.maths.mlm import RHO
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.models.tiny import load_tiny
from ...core.prompts.rich import ListedPrompts
from ...core.prompts.sets import built_in_set
from ...core.training.presets import DEMO, demo_preset
from ...core.training.regularizers.context import CoReRegularizer, recommended_weights
from ...core.training.regularizers.mlm import XTI_BATCH, recommended_lambda, recommended_mlm
from ...core.training.regularizers.prior import PriorPreservation
from ...core.training.regularizers.seam import Regularizer
from ...core.training.run.events import Finished, Step
from ...core.training.trainer import TrainingRun, train
from ...core.world import concepts as world
from ...core.world.prompts import EvaluationPrompt, evaluation_prompts

PICTURES = 4
"""Training pictures of a concept, as a user would have."""
PLAIN = 6
"""Pictures of the prompt that was trained on, to see whether the word was learned at all."""


@dataclass(frozen=True)
class Method:
    """A way to train a word: `core` is lambda_emb and lambda_attn (METHODS.md C4), `mlm` is lambda, rho and, where it
    is not the usual one, the number of prompts a step (METHODS.md 2.6); None where the method does without. `prior` is
    how many pictures of the class preserve what its word means. `changes` are settings other than `DEMO`'s."""

    name: str
    label: str
    core: tuple[float, float] | None = None
    mlm: tuple[float, float] | tuple[float, float, int] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    prior: int = 0


@dataclass(frozen=True)
class Trial:
    """What came of it: the word, the judged pictures, and plain figures."""

    concept: Concept
    pictures: np.ndarray
    prompts: Sequence[EvaluationPrompt]
    figures: dict[str, Any]


def plain_inversion(model: DiffusersModel, **changes: Any) -> Method:
    """Textual inversion without any regularizer, hence also without CoRe's hold on the vector's length."""
    return Method("ti", "plain TI", changes={"norm_mode": "none", **changes})


def core_inversion(model: DiffusersModel, **changes: Any) -> Method:
    """Textual inversion with CoRe at the weights recommended for the model."""
    weights = recommended_weights(model)
    return Method("core", "CoRe", core=(weights.embedding, weights.attention), changes=changes)


def mlm_inversion(model: DiffusersModel, **changes: Any) -> Method:
    """Textual inversion with MLM at the weight recommended for the model."""
    weight = recommended_lambda(model)
    return Method("mlm", "MLM", mlm=(weight, RHO), changes={"norm_mode": "none", **changes})


def combined(model: DiffusersModel, kind: str, label: str, *, core: bool, mlm: bool) -> Method:
    """What `kind` of `METHODS` trains, by the bundled model's recipe for it, without or with CoRe and MLM at the
    weights recommended for the model. Without prior preservation (docs/claims.md says why)."""
    changes = {key: value for key, value in demo_preset(kind).values.items() if DEMO.values.get(key) != value}
    added = {"core": ("CoRe", core), "mlm": ("MLM", mlm)}
    return Method(
        "_".join([kind, *(name for name, (_, wanted) in added.items() if wanted)]),
        " + ".join([label, *(title for title, wanted in added.values() if wanted)]),
        core=core_inversion(model).core if core else None,
        mlm=(recommended_lambda(model), RHO, *([XTI_BATCH] if "xti" in kind else [])) if mlm else None,
        # CoRe's hold on the vectors' length belongs to CoRe.
        changes=changes if core else {**changes, "norm_mode": "none"},
    )


def demo_model() -> DiffusersModel:
    """The bundled model behind the protocol."""
    return DiffusersModel.from_tiny(load_tiny())


def run_trial(
    model: DiffusersModel,
    method: Method,
    name: str,
    seed: int,
    *,
    prompts: Sequence[EvaluationPrompt] | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Trial:
    """Train `method` on `PICTURES` pictures of the held-out concept `name` and judge one picture a prompt.

    Seeds are paired: two methods with the same `seed` see the same noise in training and start their pictures from the
    same noise. `seconds` is the training alone.
    """
    subject = world.CONCEPTS[name]
    references, _, class_word = world.concept_images(name, PICTURES, seed=seed)
    started = time.perf_counter()
    concept = learn(model, method, name, class_word, references, seed, watch)
    seconds = time.perf_counter() - started
    prompts = list(prompts or held_out_prompts(subject.background))
    pictures, found = judge(partial(draw, model, concept=concept), prompts, subject, references, seed, PLAIN)
    figures = {
        "method": method.name,
        "concept": name,
        "class_word": class_word,
        "seed": seed,
        **found,
        **diagnosis(model, concept, seed),
        "norm": float(next(iter(concept.vectors.values())).norm(dim=-1).mean()),
        "seconds": seconds,
        "core": method.core,
        "mlm": method.mlm,
    }
    return Trial(concept, pictures, prompts, figures)


def judge(
    drawing: Callable[[Sequence[str], Sequence[int]], np.ndarray],
    prompts: Sequence[EvaluationPrompt],
    subject: world.Concept,
    references: np.ndarray,
    seed: int,
    plain: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """What `drawing` makes of templates and seeds: a picture for each prompt and what they show; under "plain_prompt"
    what `plain` pictures of the prompt that was trained on show, where any are asked for."""
    seeds = [1000 * seed + index for index in range(len(prompts))]
    pictures = drawing([prompt.text for prompt in prompts], seeds)
    figures: dict[str, Any] = score(pictures, prompts, subject, references).figures()
    if plain:
        near = [EvaluationPrompt("a photo of a {}")] * plain
        drawn = drawing([prompt.text for prompt in near], [1000 * seed + 500 + index for index in range(plain)])
        figures["plain_prompt"] = score(drawn, near, subject, references).figures()
    return pictures, figures


def diagnosis(model: DiffusersModel, concept: Concept, seed: int) -> dict[str, float]:
    """sim1, sim2 and SKL (METHODS.md 2.7), of a word with vectors of every layer the mean over what each layer sees."""
    probes = context_probes()
    word = {"vectors": concept.vectors, "layers": concept.layer_vectors}
    with with_lora(model, concept):
        context = context_similarity(model, probes, **word)
        divergence = skl(model, probes[::2], Filling(**word), Sampling(seed=1000 * seed + 900))
    return {
        "sim1": context.sim1, "sim2": context.sim2, "skl": divergence.raw, "skl_pixels": divergence.normalised
    }  # fmt: skip


def held_out_prompts(training_background: str) -> list[EvaluationPrompt]:
    """Prompts whose background no training picture showed and no regularisation prompt named."""
    return [prompt for prompt in evaluation_prompts(without=training_background) if prompt.held_out]


def learn(
    model: DiffusersModel,
    method: Method,
    name: str,
    class_word: str,
    pictures: np.ndarray,
    seed: int,
    watch: Callable[[Step], None] | None = None,
    prompts: Sequence[str] | None = None,
) -> Concept:
    """The training of a trial. `prompts` stand in for the regularizers' own sets."""
    with training(model, method, name, class_word, pictures, seed, prompts) as run:
        for event in run:
            if isinstance(event, Step) and watch is not None:
                watch(event)
            if isinstance(event, Finished):
                return event.concept
    raise RuntimeError("the training ended without a result")


def training(
    model: DiffusersModel,
    method: Method,
    name: str,
    class_word: str,
    pictures: np.ndarray,
    seed: int,
    prompts: Sequence[str] | None = None,
) -> TrainingRun:
    """The training of a trial, not begun."""
    settings = DEMO.settings(class_word, **{"name": name, "seed": seed, **method.changes})
    added = regularizers(method, model, prompts)
    return train(model, list(as_training_images(pictures)), settings, regularizers=added)


def regularizers(method: Method, model: DiffusersModel, prompts: Sequence[str] | None = None) -> list[Regularizer]:
    """What the method adds to the diffusion loss. No prompt of it names a background of the evaluation."""
    found: list[Regularizer] = []
    if method.core is not None:
        embedding, attention = method.core
        chosen = tuple(prompts or built_in_set("concept_world").prompts)
        found.append(CoReRegularizer(chosen, embedding_weight=embedding, attention_weight=attention))
    if method.mlm is not None:
        weight, rho, *batch = method.mlm
        listed = ListedPrompts(tuple(prompts)) if prompts else None
        options = {"batch": batch[0]} if batch else {}
        found.append(recommended_mlm(model, prompts=listed, weight=weight, rho=rho, **options))
    if method.prior:
        side = SIZE.height  # of the training pictures, too
        found.append(PriorPreservation(pictures=method.prior, batch=DEMO.values["batch"], resolution=side))
    return found


def cached_trial(folder: Path, key: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a trial from `folder`, or made now and kept there, so that a long comparison can be resumed."""
    path = folder / f"{key}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    figures = run()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    temporary.replace(path)
    return figures


def method_key(method: Method) -> str:
    """A short name for files: the same for methods that train the same way, whatever they are called."""
    import hashlib

    decisive = [method.core, method.mlm, {**DEMO.values, **method.changes}]
    decisive += [method.prior] if method.prior else []
    text = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
