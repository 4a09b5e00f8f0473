"""The part `beyond` of `claims`: context regularization on flow matching with joint attention."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

from ...core.inspection.world.checks import Judge
from ...core.inspection.world.world_evaluation import draw
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.models.diffusers_flow import FlowModel
from ...core.models.tiny.load import load_flow
from ...core.models.tiny.weights import tiny_weights_path
from ...core.training.regularizers.context import NARROW_FLOW
from ...core.training.regularizers.mlm import NARROW_FLOW_LAMBDA
from ...core.world import concepts as world
from ...core.world.prompts import held_out_prompts
from ...core.world.render import concept_images
from .timing import stopwatch
from .trials import CHOICES, PICTURES, PLAIN, Arm, Comparison, Trial, combined, judge, learn

LEARNED = {"ti": "TI", "word-lora": "word + LoRA"}
"""What is trained, by the name in `METHODS`."""
RECIPES: dict[str, dict[str, Any]] = {
    "ti": {"steps": 100, "learning_rate": 2e-2},
    "word-lora": {"steps": 100, "learning_rate": 1e-2, "weight_rate": 1e-3},
}
"""What differs from the bundled Stable Diffusion's recipes: chosen on the goblet with one seed, in five trainings."""
SAMPLING = {"steps": 25, "guidance": 4.0, "eta": 0.0}
"""How it draws: along the flow, without noise on the way."""


@dataclass(frozen=True)
class FlowArm(Arm):
    """An arm on the flow matching model, whose weights decide a trial too."""

    @property
    def beyond(self) -> list[Any]:
        return [weights_digest()]


@cache
def weights_digest() -> str:
    """Twelve hex digits of the bundled flow matching model's weights and of its judge's."""
    digest = hashlib.blake2b(digest_size=6)
    for part in ("transformer", "vae", "text_encoder", "flow_judge"):
        digest.update(tiny_weights_path(part).read_bytes())
    return digest.hexdigest()


@cache
def flow_model() -> FlowModel:
    """The model, once a process."""
    return FlowModel(load_flow())


@cache
def flow_judge() -> Judge:
    """Who has seen what comes out of its autoencoder."""
    return Judge.of("flow_judge")


def beyond_part(model: DiffusersModel) -> Comparison:
    """Textual inversion, and word and LoRA together, each without and with CoRe, MLM and both."""
    arms: dict[str, list[FlowArm]] = {
        kind: [_arm(combined(model, kind, title, core=core, mlm=mlm), RECIPES[kind]) for mlm, core in CHOICES]
        for kind, title in LEARNED.items()
    }
    pairs = [(arm.name, plain.name) for plain, *others in arms.values() for arm in others]
    alone, together = arms.values()
    pairs += [(both.name, word.name) for word, both in zip(alone, together, strict=True)]
    return Comparison("beyond", (*alone, *together), tuple(pairs), run_flow_trial)


def _arm(arm: Arm, recipe: dict[str, Any]) -> FlowArm:
    """`arm` with what suits this model in place of what suits the other one."""
    own = {one.name: getattr(arm, one.name) for one in fields(arm)}
    core = None if arm.core is None else (NARROW_FLOW.embedding, NARROW_FLOW.attention)
    mlm = None if arm.mlm is None else (NARROW_FLOW_LAMBDA, *arm.mlm[1:])
    return FlowArm(**{**own, "core": core, "mlm": mlm, "changes": {**arm.changes, **recipe}})


def run_flow_trial(model: DiffusersModel, arm: Arm, name: str, seed: int) -> Trial:
    """`run_trial` on the flow matching model and not on `model`, without what looks on at cross-attention."""
    flow, subject = flow_model(), world.CONCEPTS[name]
    references, _, class_word = concept_images(name, PICTURES, seed=seed)
    taken = stopwatch(flow)
    concept = learn(flow, arm, name, class_word, references, seed)
    seconds = taken()
    prompts = held_out_prompts(subject.background)
    drawing = partial(draw, flow, concept=concept, **SAMPLING)
    pictures, found = judge(drawing, prompts, subject, references, seed, PLAIN, flow_judge())
    figures = {
        "method": arm.name,
        "concept": name,
        "class_word": class_word,
        "seed": seed,
        **found,
        "seconds": seconds,
        "weights": weights_digest(),
        "core": arm.core,
        "mlm": arm.mlm,
    }
    return Trial(concept, pictures, prompts, figures)
