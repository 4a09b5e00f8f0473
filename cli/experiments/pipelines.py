"""Whole pipelines as data: a first stage, what follows it, and how many steps each gets so that all take as long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.methods import METHODS
from ...core.training.presets import DEMO, demo_preset
from .defaults import BEST, BEST_STEPS
from .trials import Arm, combined

Second = Literal["", "lora", "tlora", "self"]
Repairs = Literal["", "repair", "redraw"]

SECOND_STEPS = 60
"""Of the second stage where no search has chosen."""
FOLLOWED_RATE = 5e-3
"""Of a word that a second stage follows, where no search has chosen."""
SELF_ATTENTION = ("attn1",)
DTI_RATE = 4e-2
"""Radians a step of the word where no search has chosen: the recipe's of METHODS.md 5.1."""
BUDGET = {"ti": DEMO.values["steps"]}
"""What all pipelines may cost, as steps: plain textual inversion by its recipe."""


@dataclass(frozen=True)
class Cost:
    """Processor seconds: `begin` until the first step, in which pictures are encoded, and of each `step`."""

    begin: float
    step: float


Costs = Mapping[str, Cost]
"""By the names of `Recipe.first_cost` and of second stages."""


@dataclass(frozen=True)
class Pipeline(Arm):
    """An arm whose own training is the first stage. `second` are the settings of the LoRA that is trained around its
    word then, None for none. `predicted` takes the tuning-encoder over two paths in place of all that. What `repairs`
    says is done about prompts that are not obeyed. Its LoRA acts from `lora_start` of the sampling on. `planned` is how
    the steps were found."""

    second: Mapping[str, Any] | None = None
    predicted: bool = False
    repairs: Repairs = ""
    lora_start: float = 0.0
    planned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def beyond(self) -> list[Any]:
        """What decides a trial beside the first stage."""
        # What is so in any case is left unsaid: the trial keeps its name.
        late = [self.lora_start] if self.lora_start else []
        return [self.second, self.predicted, self.repairs, *late]

    @property
    def learned(self) -> Pipeline:
        """What of it is learned before anything is drawn."""
        return replace(self, repairs="", lora_start=0.0)

    @property
    def steps(self) -> tuple[int, int]:
        """Of both stages."""
        first = {**self.base.values, **self.changes}["steps"]
        return int(first), int(self.second["steps"]) if self.second else 0


@dataclass(frozen=True)
class Recipe:
    """What a pipeline is made of: one of `METHODS`, without or with the regularizers, and a second stage or none. With
    `directional` the word goes by DTI's own rule (METHODS.md 5.1)."""

    name: str
    label: str
    method: str = "ti"
    core: bool = False
    mlm: bool = False
    second: Second = ""
    directional: bool = False

    @property
    def base(self) -> str:
        """The recipe whose searched values this one has: all kinds of second stage have the plain one's."""
        return self.name.removesuffix(f"_{self.second}") + "_lora" if self.second else self.name

    def first_cost(self, values: Mapping[str, Any]) -> str:
        """What the first stage's cost is called: the attention loss of CoRe is half of it, unless its weight is 0."""
        parts = [self.method]
        parts += ["core"] if self.core else []
        parts += ["attention"] if self.core and values["core_attention"] > 0 else []
        return "+".join([*parts, *(["mlm"] if self.mlm else [])])

    @property
    def regularized(self) -> bool:
        """Whether there is something that `regularize_every` is about."""
        return self.core or self.mlm


FIRST = {"ti": "TI", "core": "CoRe", "mlm": "MLM", "core_mlm": "CoRe + MLM"}
"""First stages that learn a word alone."""
SECOND: dict[Second, str] = {
    "": "",
    "lora": " + LoRA",
    "tlora": " + LoRA with timestep-dependent rank",
    "self": " + LoRA of self-attention",
}
"""What may follow. The last is ours: docs/claims_first_model.md says what it leaves out, and why."""
OTHERS = (
    Recipe("dreambooth-lora", "DreamBooth-LoRA", "dreambooth-lora"),
    Recipe("dreambooth-lora_mlm", "DreamBooth-LoRA + MLM", "dreambooth-lora", mlm=True),
    Recipe("custom-diffusion", "Custom Diffusion", "custom-diffusion"),
    Recipe("custom-diffusion_mlm", "Custom Diffusion + MLM", "custom-diffusion", mlm=True),
    *(
        Recipe(
            "word-lora" if name == "ti" else f"word-lora_{name}",
            "word and LoRA together" + ("" if name == "ti" else f" + {label}"),
            "word-lora",
            core="core" in name,
            mlm="mlm" in name,
        )
        for name, label in FIRST.items()
    ),
    Recipe("xti", "XTI", "xti"),
    Recipe("xti_mlm", "XTI + MLM", "xti", mlm=True),
    Recipe("dti", "DTI", directional=True),
)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(
            Recipe(
                "_".join(filter(None, (name, second))),
                label + title,
                core="core" in name,
                mlm="mlm" in name,
                second=second,
            )
            # What begins alike lies apart, so that a worker finds the first stage that another one has trained.
            for second, title in SECOND.items()
            for name, label in FIRST.items()
        ),
        *OTHERS,
    )
}
"""By name, as on the command line of `search`."""
SEARCHED = {name: recipe for name, recipe in RECIPES.items() if recipe.base == name}


def recommended(model: DiffusersModel, recipe: Recipe) -> dict[str, Any]:
    """The values that the recipe has where no search chose others: the bundled model's own."""
    own = combined(model, recipe.method, recipe.label, core=recipe.core, mlm=recipe.mlm)
    preset = demo_preset("refine" if recipe.second else recipe.method).values
    values: dict[str, Any] = {}
    if recipe.method != "dreambooth-lora":  # whose word is a rare one, and stays
        own_rate = FOLLOWED_RATE if recipe.second else preset["learning_rate"]
        values["learning_rate"] = DTI_RATE if recipe.directional else own_rate
    if own.core is not None:
        values |= dict(zip(("core_embedding", "core_attention"), own.core, strict=True))
    if own.mlm is not None:
        values["mlm"] = own.mlm[0]
    if "weight_rate" in preset:
        values["weight_rate"] = preset["weight_rate"]
    if rank := preset.get("rank", METHODS["refine" if recipe.second else recipe.method].rank):
        values["rank"] = rank
    if recipe.regularized:
        values["regularize_every"] = 1
    return values | ({"second_steps": SECOND_STEPS} if recipe.second else {})


WEIGHTS = ("core_embedding", "core_attention", "mlm")
"""Values of a regularizer, which are about a word whatever else is trained; others are about one kind of training."""


def inherited(model: DiffusersModel, recipe: Recipe, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a search chose for the recipe: its own values, and for those that it has none of the most alike recipe's.

    Alike are those that train the same, then those with the same regularizers; a regularizer's own weights may come
    from any other. What nobody has is missing, and so is what the recipe has no recommended value of.
    """
    own = (recipe.method, bool(recipe.second), recipe.directional)
    rows = []
    for name, values in chosen.items():
        other = SEARCHED[name]
        same = (other.method, bool(other.second), other.directional) == own
        alike = (name == recipe.base, same, (other.core == recipe.core) + (other.mlm == recipe.mlm))
        rows.append((alike, values if same else {key: values[key] for key in WEIGHTS if key in values}))
    found: dict[str, Any] = {}
    for _, values in sorted(rows, key=lambda row: row[0]):
        found |= values
    return {key: found[key] for key in recommended(model, recipe) if key in found}


def pipeline(
    model: DiffusersModel,
    recipe: Recipe,
    chosen: Mapping[str, Any] | None = None,
    costs: Costs | None = None,
    times: int = 1,
) -> Pipeline:
    """`recipe` with the `chosen` values in place of recommended ones. With `costs` its first stage gets the steps that
    are left of `times` `BUDGET`; without them it has its recipe's. Raises ValueError as `equal_steps`."""
    values = {**recommended(model, recipe), **(chosen or {})}
    arm = combined(model, recipe.method, recipe.label, core=recipe.core, mlm=recipe.mlm)
    changes, second = dict(arm.changes), None
    changes |= {"learning_rate": values["learning_rate"]} if "learning_rate" in values else {}
    changes |= {"norm_mode": "dti"} if recipe.directional else {}
    # What is so in any case is left unsaid: the trial keeps its name.
    changes |= {"regularize_every": every} if (every := values.get("regularize_every", 1)) > 1 else {}
    weights = {key: values[key] for key in ("weight_rate", "rank") if key in values}
    if recipe.second:
        second = {"steps": values["second_steps"], **weights}
        second |= {"least_rank": least(values["rank"])} if recipe.second == "tlora" else {}
        second |= {"only_layers": SELF_ATTENTION} if recipe.second == "self" else {}
    else:
        changes |= weights
    planned: dict[str, Any] = {"values": values}
    if costs is not None:
        changes["steps"], planned = equal_steps(recipe, values, costs, times)
    return Pipeline(
        recipe.name,
        recipe.label,
        core=None if arm.core is None else (values["core_embedding"], values["core_attention"]),
        mlm=None if arm.mlm is None else (values["mlm"], *arm.mlm[1:]),
        changes=changes,
        second=second,
        planned=planned,
    )


def demonstrated(model: DiffusersModel, name: str, steps: int | None = None) -> Pipeline:
    """The recipe called `name` as the demo trains it: by its recommended values, `BEST` in `BEST_STEPS`, the first
    stage in `steps` where they are given."""
    first, second = BEST_STEPS if name == BEST else (None, None)
    arm = pipeline(model, RECIPES[name], {} if second is None else {"second_steps": second})
    first = first if steps is None else steps
    return arm if first is None else replace(arm, changes={**arm.changes, "steps": first})


def least(rank: int) -> int:
    """The rank that acts where there is most noise: half of it, as T-LoRA's authors take."""
    return (rank + 1) // 2


def budget(costs: Costs) -> float:
    """Processor seconds that a pipeline may take."""
    return sum(costs[name].begin + steps * costs[name].step for name, steps in BUDGET.items())


def equal_steps(recipe: Recipe, values: Mapping[str, Any], costs: Costs, times: int = 1) -> tuple[int, dict[str, Any]]:
    """The steps of the first stage that fill what the second one leaves of `times` the budget, and how they were found.

    Raises ValueError where the second stage leaves none.
    """
    first, whole = costs[recipe.first_cost(values)], times * budget(costs)
    if recipe.regularized:
        # Of `regularize_every` steps one costs more than a plain one.
        plain = costs[recipe.method].step
        first = Cost(first.begin, plain + (first.step - plain) / values.get("regularize_every", 1))
    left = whole - first.begin
    if recipe.second:
        # One cost for all kinds, so that they begin with the same word.
        dearer = max((costs[kind] for kind in SECOND if kind), key=lambda cost: cost.step)
        left -= dearer.begin + values["second_steps"] * dearer.step
    steps = int(left / first.step)
    if steps < 1:
        raise ValueError(f"{recipe.name}: a second stage of {values['second_steps']} steps leaves none for the word")
    return steps, {
        "values": dict(values),
        "budget": whole,
        "cost_of_first": [first.begin, first.step],
        **({"cost_of_second": [dearer.begin, dearer.step]} if recipe.second else {}),
    }


def repaired(arm: Pipeline, repairs: Repairs, label: str) -> Pipeline:
    """`arm` with something done about the prompts that it does not obey; its training pictures' latents are kept,
    which a repair looks at."""
    changes = {**arm.changes, "keep_latents": True}
    return replace(arm, name=f"{arm.name}_{repairs}", label=f"{arm.label}, {label}", repairs=repairs, changes=changes)
