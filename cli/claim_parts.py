"""What `claims` compares: every part is a set of methods and the pairs among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..core.models.diffusers_adapter import DiffusersModel
from .claims import Part
from .companion_trials import run_companion_trial
from .trials import Method, core_inversion, mlm_inversion, plain_inversion

LAMBDAS = (1e-5, 1e-4, 5e-4, 1e-3)
"""The manuscript's range (METHODS.md 2.6), for an encoder of width 768."""
SCALED = (0.03, 0.1, 0.3)
"""What that becomes on the narrow encoder of the bundled model."""
RHOS = (0.15, 0.5, 0.9)
RATES = (1e-2, 2e-2, 4e-2)
"""Learning rates of plain textual inversion, from where it obeys to where it swallows the prompt."""
WEIGHTS = ((0.005, 0.05), (0.015, 0.15), (0.05, 0.5), (0.15, 1.5))
"""lambda_emb and lambda_attn of CoRe, one to ten."""


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


PARTS: dict[str, Callable[[DiffusersModel], Part]] = {
    "regime": regime_part,
    "core-sweep": core_sweep,
    "core": core_part,
    "mlm": mlm_part,
    "mlm-sweep": mlm_sweep,
    "companions": companion_part,
}
"""By the name to give on the command line."""
