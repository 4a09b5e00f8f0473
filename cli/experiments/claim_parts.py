"""What `claims` compares: every part is a set of arms and the pairs among them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

from ...core.maths.norms import NormMode
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.methods import METHODS, first_stages
from ...core.training.presets import DEMO, recipes
from ...core.training.regularizers.mlm import NARROW_LAMBDA
from ...core.training.regularizers.registry import REGULARIZERS, Added
from .companion_trials import run_companion_trial, run_neutral_companion_trial
from .fast_trials import equal_seconds_table, fast_arms, run_fast_trial, sweep_arms
from .flow_trials import beyond_part
from .pipeline_parts import attention_part, exchanged_part, late_part, leaders_part, longer_part, pipelines_part
from .quality_trials import reached_table, run_quality_trial
from .trials import CHOICES, Arm, Comparison, combined, core_inversion, mlm_inversion, plain_inversion

LAMBDAS = (1e-5, 1e-4, 5e-4, 1e-3)
"""The manuscript's range (METHODS.md 2.6), for an encoder of width 768."""
SCALED = (NARROW_LAMBDA,)
"""What suits the narrow encoder of the bundled model."""
RHOS = (0.15, 0.5, 0.9)
RATES = (1e-2, 2e-2, 4e-2)
"""Learning rates of plain textual inversion, from where it obeys to where it swallows the prompt."""
WEIGHTS = ((0.005, 0.05), (0.015, 0.15), (0.05, 0.5), (0.15, 1.5))
"""lambda_emb and lambda_attn of CoRe, one to ten."""

CLASS_PICTURES = 20
"""For prior preservation."""

KINDS = {"ti": "TI", "xti": "XTI", "custom-diffusion": "CD", "dreambooth-lora": "DB-LoRA"}
"""What the papers combine, by the name in `METHODS`."""
COSINE = {"schedule": "cosine", "warmup": 5}
FAST = (
    ("fast", "CoRe, 100 steps, 2e-2, cosine", {"steps": 100, "learning_rate": 2e-2, **COSINE}),
    (
        "fast_sphere",
        "CoRe, 100 steps, 2e-2, cosine, spherical",
        {"steps": 100, "learning_rate": 2e-2, **COSINE, "norm_mode": "spherical"},
    ),
)
"""Quick recipes for a word alone: name, label, and what differs from `DEMO`."""
NORM_MODES = tuple(mode for mode in get_args(NormMode) if mode != "dti")
"""Rules for the length at one and the same optimizer; "dti" replaces that too, and its rate is an angle."""


def regime_part(model: DiffusersModel) -> Comparison:
    """Plain textual inversion over learning rates: where does it learn the concept, where does it lose the prompt?"""
    arms = [
        replace(plain_inversion(model, learning_rate=rate), name=f"ti_{rate:g}", label=f"plain TI at {rate:g}")
        for rate in RATES
    ]
    return Comparison("regime", tuple(arms), tuple((arm.name, arms[0].name) for arm in arms[1:]))


def core_sweep(model: DiffusersModel) -> Comparison:
    """CoRe's weights, for development concepts."""
    arms = [Arm(f"core_{e:g}_{a:g}", f"CoRe {e:g} / {a:g}", core=(e, a)) for e, a in WEIGHTS]
    return Comparison("core-sweep", (plain_inversion(model), *arms), tuple((arm.name, "ti") for arm in arms))


def core_part(model: DiffusersModel) -> Comparison:
    """CoRe against plain textual inversion."""
    arms = (plain_inversion(model), core_inversion(model))
    return Comparison("core", arms, (("core", "ti"),))


def mlm_part(model: DiffusersModel) -> Comparison:
    """MLM and CoRe + MLM at the recommended weights."""
    core, mlm = core_inversion(model), mlm_inversion(model)
    both = Arm("core_mlm", "CoRe + MLM", core=core.core, mlm=mlm.mlm)
    return Comparison(
        "mlm", (plain_inversion(model), core, mlm, both), (("mlm", "ti"), ("core_mlm", "ti"), ("core_mlm", "core"))
    )


def mlm_sweep(model: DiffusersModel) -> Comparison:
    """lambda at rho 0.15, and rho at the recommended lambda."""
    weight, rho = mlm_inversion(model).mlm
    grid = [(value, rho) for value in (*LAMBDAS, *SCALED)] + [(weight, value) for value in RHOS if value != rho]
    arms = [
        Arm(
            f"mlm_{value:g}_{rho:g}",
            f"MLM, lambda {value:g}, rho {rho:g}",
            mlm=(value, rho),
            changes={"norm_mode": "none"},
        )
        for value, rho in grid
    ]
    return Comparison("mlm-sweep", (plain_inversion(model), *arms), tuple((arm.name, "ti") for arm in arms))


def companion_part(model: DiffusersModel) -> Comparison:
    """MLM with a list of prompts for the concept, where every training picture holds a second thing."""
    return Comparison(
        "companions", (plain_inversion(model), mlm_inversion(model)), (("mlm", "ti"),), run_companion_trial
    )


def neutral_companion_part(model: DiffusersModel) -> Comparison:
    """The same where the word does not begin as its class word."""
    return replace(companion_part(model), name="companions-neutral", trial=run_neutral_companion_trial)


def methods_part(model: DiffusersModel) -> Comparison:
    """Every method without and with each regularizer, against itself without."""
    arms = {
        kind: [combined(model, kind, label, core=core, mlm=mlm) for mlm, core in CHOICES]
        for kind, label in KINDS.items()
    }
    pairs = tuple((arm.name, plain.name) for plain, *others in arms.values() for arm in others)
    return Comparison("methods", tuple(arm for group in arms.values() for arm in group), pairs)


def prior_part(model: DiffusersModel) -> Comparison:
    """Methods that change weights, without and with prior preservation."""
    kinds = ("custom-diffusion", "dreambooth-lora")
    plain = [combined(model, kind, KINDS[kind], core=False, mlm=False) for kind in kinds]
    kept = [
        replace(one, name=f"{one.name}_prior", label=f"{one.label} + prior preservation", prior=CLASS_PICTURES)
        for one in plain
    ]
    pairs = tuple((treated.name, control.name) for treated, control in zip(kept, plain, strict=True))
    return Comparison("prior", (*plain, *kept), pairs)


def norm_modes_part(model: DiffusersModel) -> Comparison:
    """CoRe with every rule for the length of the vectors (METHODS.md C5, 6 no. 1), against CoRe without one."""
    # The recipe's own rule is left unsaid, so that its trials are those of CoRe.
    own = DEMO.values["norm_mode"]
    modes = [core_inversion(model, **({} if mode == own else {"norm_mode": mode})) for mode in NORM_MODES]
    arms = [replace(one, name=mode, label=f"CoRe, {mode}") for one, mode in zip(modes, NORM_MODES, strict=True)]
    return Comparison("norm-modes", tuple(arms), tuple((mode, "none") for mode in NORM_MODES if mode != "none"))


def ablation_part(model: DiffusersModel) -> Comparison:
    """CoRe without one of its three pieces, against all of it."""
    whole = core_inversion(model)
    embedding, attention = whole.core
    arms = (
        whole,
        replace(whole, name="no_embedding", label="CoRe without L_emb", core=(0.0, attention)),
        replace(whole, name="no_attention", label="CoRe without L_attn", core=(embedding, 0.0)),
        replace(whole, name="no_window", label="CoRe without rescaling", changes={"norm_mode": "none"}),
    )
    return Comparison("ablation", arms, tuple((one.name, "core") for one in arms[1:]))


def seldom_part(model: DiffusersModel) -> Comparison:
    """CoRe and MLM in every k-th step, with k times the weight, against none and against every step."""
    core, mlm = core_inversion(model), mlm_inversion(model)
    arms = (
        plain_inversion(model),
        core,
        *(_seldom(core, every) for every in (2, 3)),
        mlm,
        _seldom(mlm, 3),
    )
    pairs = [(one.name, "ti") for one in arms[1:]]
    pairs += [("core_2", "core"), ("core_3", "core"), ("mlm_3", "mlm")]
    return Comparison("seldom", arms, tuple(pairs))


def _seldom(arm: Arm, every: int) -> Arm:
    ordinal = {2: "second", 3: "third"}[every]
    changes = {**arm.changes, "regularize_every": every}
    return replace(arm, name=f"{arm.name}_{every}", label=f"{arm.label}, in every {ordinal} step", changes=changes)


def quality_part(model: DiffusersModel) -> Comparison:
    """How many steps and seconds each method needs to be as good as plain textual inversion ever is."""
    arms = [combined(model, kind, label, core=False, mlm=False) for kind, label in KINDS.items()]
    arms.append(combined(model, "xti", KINDS["xti"], core=True, mlm=False))
    core = core_inversion(model)
    arms += [core, *(replace(core, name=name, label=label, changes=changes) for name, label, changes in FAST)]
    return Comparison("time-to-quality", tuple(arms), (), run_quality_trial, reached_table)


def equal_seconds_sweep(model: DiffusersModel) -> Comparison:
    """Candidates for a quick recipe, for development concepts."""
    return Comparison("equal-seconds-sweep", sweep_arms(model), (), run_fast_trial, equal_seconds_table)


def equal_seconds_part(model: DiffusersModel) -> Comparison:
    """Recognised and obeyed on the same picture, in a fifth of the time that plain textual inversion needs for its
    best."""
    return Comparison("equal-seconds", fast_arms(model), (), run_fast_trial, equal_seconds_table)


PARTS: dict[str, Callable[[DiffusersModel], Comparison]] = {
    "pipelines": pipelines_part,
    "leaders": leaders_part,
    "exchanged": exchanged_part,
    "attention": attention_part,
    "longer": longer_part,
    "late": late_part,
    "regime": regime_part,
    "core-sweep": core_sweep,
    "core": core_part,
    "mlm": mlm_part,
    "mlm-sweep": mlm_sweep,
    "companions": companion_part,
    "companions-neutral": neutral_companion_part,
    "methods": methods_part,
    "prior": prior_part,
    "norm-modes": norm_modes_part,
    "ablation": ablation_part,
    "seldom": seldom_part,
    "time-to-quality": quality_part,
    "equal-seconds-sweep": equal_seconds_sweep,
    "equal-seconds": equal_seconds_part,
    "beyond": beyond_part,
}
"""By the name to give on the command line."""


def every_part() -> dict[str, Callable[[DiffusersModel], Comparison]]:
    """`PARTS`, and one part for each regularizer, method and recipe that there is, whoever wrote it."""
    regularizers = {f"with-{name}": partial(regularizer_part, name) for name in REGULARIZERS if name not in PARTS}
    methods = {f"method-{kind}": partial(method_part, kind) for kind in first_stages().values()}
    wanted = recipes(first_stages().values())
    own = {f"recipe-{slug(name)}": partial(recipe_part, name) for name in wanted if name != DEMO.name}
    return {**PARTS, **regularizers, **methods, **own}


def regularizer_part(name: str, model: DiffusersModel) -> Comparison:
    """Plain textual inversion with a regularizer, with its own numbers, against that without."""
    kind, plain = REGULARIZERS[name], plain_inversion(model)
    added = replace(plain, name=name, label=kind.title, further=(Added(name),))
    added = replace(added, changes={}) if kind.keeps_window else added
    return Comparison(f"with-{name}", (plain, added), ((name, plain.name),))


def method_part(kind: str, model: DiffusersModel) -> Comparison:
    """One of `METHODS` without and with each regularizer of the papers, against itself without."""
    title = METHODS[kind].title
    plain, *others = (combined(model, kind, title, core=core, mlm=mlm) for mlm, core in CHOICES)
    return Comparison(f"method-{kind}", (plain, *others), tuple((arm.name, plain.name) for arm in others))


def recipe_part(name: str, model: DiffusersModel) -> Comparison:
    """A recipe as it stands against the bundled model's own for its method."""
    recipe = recipes()[name]
    own = combined(model, recipe.method, f"{DEMO.name}'s recipe", core=recipe.core, mlm=False)
    called = f"recipe-{slug(name)}"
    arm = Arm(called, name, core=own.core, prior=CLASS_PICTURES * recipe.prior, recipe=name)
    return Comparison(called, (own, arm), ((called, own.name),))


def slug(name: str) -> str:
    """A recipe's name as it is typed on a command line."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
