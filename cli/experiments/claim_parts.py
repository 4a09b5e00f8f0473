"""What `claims` compares: every part is a set of methods and the pairs among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import get_args

from ...core.maths.norms import NormMode
from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.presets import DEMO
from .companion_trials import run_companion_trial, run_neutral_companion_trial
from .quality_trials import reached_table, run_quality_trial
from .trials import Method, Part, combined, core_inversion, mlm_inversion, plain_inversion

LAMBDAS = (1e-5, 1e-4, 5e-4, 1e-3)
"""The manuscript's range (METHODS.md 2.6), for an encoder of width 768."""
SCALED = (0.03,)
"""What that becomes on the narrow encoder of the bundled model; stronger ones lose the subject (docs/claims.md)."""
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
NORM_MODES = get_args(NormMode)


def regime_part(model: DiffusersModel) -> Part:
    """Plain textual inversion over learning rates: where does it learn the concept, where does it lose the prompt?"""
    methods = [
        replace(plain_inversion(model, learning_rate=rate), name=f"ti_{rate:g}", label=f"plain TI at {rate:g}")
        for rate in RATES
    ]
    return Part("regime", tuple(methods), tuple((method.name, methods[0].name) for method in methods[1:]))


def core_sweep(model: DiffusersModel) -> Part:
    """CoRe's weights, for development concepts."""
    methods = [Method(f"core_{e:g}_{a:g}", f"CoRe {e:g} / {a:g}", core=(e, a)) for e, a in WEIGHTS]
    return Part("core-sweep", (plain_inversion(model), *methods), tuple((method.name, "ti") for method in methods))


def core_part(model: DiffusersModel) -> Part:
    """CoRe against plain textual inversion."""
    methods = (plain_inversion(model), core_inversion(model))
    return Part("core", methods, (("core", "ti"),))


def mlm_part(model: DiffusersModel) -> Part:
    """MLM and CoRe + MLM at the recommended weights."""
    core, mlm = core_inversion(model), mlm_inversion(model)
    both = Method("core_mlm", "CoRe + MLM", core=core.core, mlm=mlm.mlm)
    return Part(
        "mlm", (plain_inversion(model), core, mlm, both), (("mlm", "ti"), ("core_mlm", "ti"), ("core_mlm", "core"))
    )


def mlm_sweep(model: DiffusersModel) -> Part:
    """lambda at rho 0.15, and rho at the recommended lambda."""
    weight, rho = mlm_inversion(model).mlm
    grid = [(value, rho) for value in (*LAMBDAS, *SCALED)] + [(weight, value) for value in RHOS if value != rho]
    methods = [
        Method(
            f"mlm_{value:g}_{rho:g}",
            f"MLM, lambda {value:g}, rho {rho:g}",
            mlm=(value, rho),
            changes={"norm_mode": "none"},
        )
        for value, rho in grid
    ]
    return Part("mlm-sweep", (plain_inversion(model), *methods), tuple((method.name, "ti") for method in methods))


def companion_part(model: DiffusersModel) -> Part:
    """MLM with a list of prompts for the concept, where every training picture holds a second thing."""
    return Part("companions", (plain_inversion(model), mlm_inversion(model)), (("mlm", "ti"),), run_companion_trial)


def neutral_companion_part(model: DiffusersModel) -> Part:
    """The same where the word does not begin as its class word."""
    return replace(companion_part(model), name="companions-neutral", trial=run_neutral_companion_trial)


def methods_part(model: DiffusersModel) -> Part:
    """Every method without and with each regularizer, against itself without."""
    choices = list(product((False, True), repeat=2))
    arms = {
        kind: [combined(model, kind, label, core=core, mlm=mlm) for mlm, core in choices]
        for kind, label in KINDS.items()
    }
    pairs = tuple((arm.name, plain.name) for plain, *others in arms.values() for arm in others)
    return Part("methods", tuple(arm for group in arms.values() for arm in group), pairs)


def prior_part(model: DiffusersModel) -> Part:
    """Methods that change weights, without and with prior preservation."""
    kinds = ("custom-diffusion", "dreambooth-lora")
    plain = [combined(model, kind, KINDS[kind], core=False, mlm=False) for kind in kinds]
    kept = [
        replace(one, name=f"{one.name}_prior", label=f"{one.label} + prior preservation", prior=CLASS_PICTURES)
        for one in plain
    ]
    pairs = tuple((treated.name, control.name) for treated, control in zip(kept, plain, strict=True))
    return Part("prior", (*plain, *kept), pairs)


def norm_modes_part(model: DiffusersModel) -> Part:
    """CoRe with every rule for the length of the vectors (METHODS.md C5, 6 no. 1), against CoRe without one."""
    # The recipe's own rule is left unsaid, so that its trials are those of CoRe.
    own = DEMO.values["norm_mode"]
    modes = [core_inversion(model, **({} if mode == own else {"norm_mode": mode})) for mode in NORM_MODES]
    methods = [replace(one, name=mode, label=f"CoRe, {mode}") for one, mode in zip(modes, NORM_MODES, strict=True)]
    return Part("norm-modes", tuple(methods), tuple((mode, "none") for mode in NORM_MODES if mode != "none"))


def ablation_part(model: DiffusersModel) -> Part:
    """CoRe without one of its three pieces, against all of it."""
    whole = core_inversion(model)
    embedding, attention = whole.core
    methods = (
        whole,
        replace(whole, name="no_embedding", label="CoRe without L_emb", core=(0.0, attention)),
        replace(whole, name="no_attention", label="CoRe without L_attn", core=(embedding, 0.0)),
        replace(whole, name="no_window", label="CoRe without rescaling", changes={"norm_mode": "none"}),
    )
    return Part("ablation", methods, tuple((one.name, "core") for one in methods[1:]))


def quality_part(model: DiffusersModel) -> Part:
    """How many steps and seconds each method needs to be as good as plain textual inversion ever is."""
    arms = [combined(model, kind, label, core=False, mlm=False) for kind, label in KINDS.items()]
    arms.append(combined(model, "xti", KINDS["xti"], core=True, mlm=False))
    core = core_inversion(model)
    arms += [core, *(replace(core, name=name, label=label, changes=changes) for name, label, changes in FAST)]
    return Part("time-to-quality", tuple(arms), (), run_quality_trial, reached_table)


PARTS: dict[str, Callable[[DiffusersModel], Part]] = {
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
    "time-to-quality": quality_part,
}
"""By the name to give on the command line."""
