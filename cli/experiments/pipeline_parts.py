"""The part `pipelines` of `claims`: whole pipelines at equal seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from ...core.models.diffusers_adapter import DiffusersModel
from ...core.training.one_picture.predict import require_fit
from .defaults import JOINT, LATE_START, PLAIN
from .encoder_ways import loaded
from .pipeline_costs import as_costs, as_data, completed, measured_costs
from .pipeline_tables import LEADING, PART, leading_table
from .pipeline_trials import run_pipeline_trial
from .pipelines import FIRST, RECIPES, SECOND, Costs, Pipeline, Recipe, inherited, pipeline, recommended, repaired
from .trials import Comparison, arm_key

RECORD, AROUND = "search.json", "search_around.json"
"""The record of `search`, in the folder of results, and that of a second one around what the first has chosen. All
pipelines go by the first, in which all had alike; what the second one chose stands beside them among the leaders."""
STAGES = "stages"
"""The folder of first stages, in that of the trials."""
LEADERS = ("ti", "ti_lora", "core_lora", "word-lora", "word-lora_core", "dreambooth-lora")
"""What the papers' methods and the best of one seed are told apart by, in more seeds than all pipelines have."""
EXCHANGED, LONGER, LATE, ATTENTION, AGAIN = "exchanged", "longer", "late", "attention", "_again"
LORAS = (JOINT, "dreambooth-lora")
"""Whose LoRA is tried from `LATE_START` of the sampling on."""
ATTENTION_LORA = f"{ATTENTION}_lora"
ATTENTIVE = {
    recipe.name: recipe
    for recipe in (
        Recipe(ATTENTION, "CoRe's attention loss", core=True),
        Recipe(ATTENTION_LORA, "CoRe's attention loss + LoRA", core=True, second="lora"),
    )
}
"""CoRe without its embedding loss, everything else as in plain textual inversion, without and with a LoRA."""
PATIENT, TIMES = ("ti", "ti_lora", "core_lora", ATTENTION_LORA, JOINT, "dreambooth-lora"), (2,)
"""Which pipelines are given more seconds, and how many times as many."""
PREDICTED = Pipeline("predicted", "tuning-encoder, dual path (one picture)", predicted=True)


def pipelines_part(model: DiffusersModel) -> Comparison:
    """Every pipeline, as recommended and at its recipe's steps; `prepared` gives it what was chosen and measured."""
    return replace(_compared(model, {}, JOINT, None), prepared=_prepared)


def leaders_part(model: DiffusersModel) -> Comparison:
    """`LEADERS` among the pipelines, whose trials are the same ones, and those of them that a second search changed."""

    def prepared(model: DiffusersModel, folder: Path, results: Path) -> Comparison:
        part = _leading(_prepared(model, folder, results))
        second = finished_search(model, results / AROUND).get("chosen", {})
        arms = _again(model, part, second)
        between = tuple((arm.name, other) for arm in arms for other in controls(arm.name.removesuffix(AGAIN)))
        return replace(part, arms=(*part.arms, *arms), pairs=(*part.pairs, *between))

    return replace(_leading(pipelines_part(model)), prepared=prepared)


def _again(model: DiffusersModel, part: Comparison, second: Mapping[str, Mapping[str, Any]]) -> tuple[Pipeline, ...]:
    """The part's arms with what a second search chose for them, where that is something else."""
    costs, known = as_costs(part.facts["costs"]), {arm_key(arm) for arm in part.arms}
    made = [pipeline(model, RECIPES[arm.name], second[arm.name], costs) for arm in part.arms if arm.name in second]
    return tuple(
        replace(arm, name=f"{arm.name}{AGAIN}", label=f"{arm.label}, searched again")
        for arm in made
        if arm_key(arm) not in known
    )


def controls(name: str) -> tuple[str, ...]:
    """What a recipe that was searched again is compared with."""
    first = ("ti_lora",) if RECIPES[name].second else ("word-lora",)
    return (name, "ti", *first, "dreambooth-lora")


def exchanged_part(model: DiffusersModel) -> Comparison:
    """Which stage makes CoRe's own pipeline what it is beside plain textual inversion's: each one's word with the other
    one's LoRA, and each word in as many steps as the other one's."""
    return _made_of_pipelines(model, _exchanged)


def _made_of_pipelines(model: DiffusersModel, make: Callable[[Comparison], Comparison]) -> Comparison:
    """What `make` makes of the pipelines as recommended, and of them as they are prepared."""
    return replace(make(pipelines_part(model)), prepared=lambda *folders: make(_prepared(*folders)))


def _exchanged(part: Comparison) -> Comparison:
    arms = {arm.name: arm for arm in part.arms}
    plain, core = arms["ti_lora"], arms["core_lora"]

    def made(base: Pipeline, name: str, label: str, second: Pipeline, steps: Pipeline) -> Pipeline:
        changes = {**base.changes, "steps": steps.steps[0]}
        return replace(base, name=name, label=label, second=second.second, changes=changes)

    new = (
        made(plain, "ti_lora_of_core", "TI, then CoRe's LoRA", core, plain),
        made(core, "core_lora_of_ti", "CoRe, then TI's LoRA", plain, core),
        made(plain, "ti_short_lora", "TI in CoRe's steps + LoRA", plain, core),
        made(core, "core_long_lora_of_ti", "CoRe in TI's steps (takes longer), then TI's LoRA", plain, plain),
    )
    between = (
        ("core_lora", "ti_lora"),
        ("ti_lora_of_core", "ti_lora"),
        ("core_lora_of_ti", "ti_lora"),
        ("ti_short_lora", "ti_lora"),
        ("core_long_lora_of_ti", "ti_lora"),
        ("core_lora_of_ti", "core_lora"),
        ("core_lora_of_ti", "ti_short_lora"),
        ("core_long_lora_of_ti", "core_lora_of_ti"),
    )
    return replace(part, name=EXCHANGED, arms=(plain, core, *new), pairs=between)


def attention_part(model: DiffusersModel) -> Comparison:
    """What CoRe's attention loss gives without its embedding loss, which holds a word off the subject: added to plain
    textual inversion as it is, without and with the LoRA after it."""
    return _made_of_pipelines(model, partial(_attention, model))


def _attention(model: DiffusersModel, part: Comparison) -> Comparison:
    arms = {arm.name: arm for arm in part.arms if arm.name in ("ti", "ti_lora", "core_lora", "dreambooth-lora")}
    arms |= _attentive(model, part)
    between = [(ATTENTION, "ti"), (ATTENTION_LORA, ATTENTION)]
    between += [(ATTENTION_LORA, name) for name in arms if name not in ATTENTIVE]
    return replace(part, name=ATTENTION, arms=tuple(arms.values()), pairs=tuple(between))


def _attentive(model: DiffusersModel, part: Comparison) -> dict[str, Pipeline]:
    """`ATTENTIVE` with the values of plain textual inversion and of the LoRA after it, at the recommended weight."""
    plain, arms = {arm.name: arm for arm in part.arms}, {}
    for recipe in ATTENTIVE.values():
        weight = recommended(model, recipe)["core_attention"]
        own = plain["ti_lora" if recipe.second else "ti"].planned["values"]
        values = {**own, "core_embedding": 0.0, "core_attention": weight}
        arms[recipe.name] = pipeline(model, recipe, values, _costs(part))
    return arms


def _costs(part: Comparison) -> Costs | None:
    """What the part's stages cost, once it is prepared."""
    return as_costs(part.facts["costs"]) if part.facts else None


def longer_part(model: DiffusersModel) -> Comparison:
    """What more steps give: some pipelines in several times the seconds that all have, with both stages longer."""
    return _made_of_pipelines(model, partial(_longer, model))


def _longer(model: DiffusersModel, part: Comparison) -> Comparison:
    costs = _costs(part)
    plain = [arm for arm in (*part.arms, *_attentive(model, part).values()) if arm.name in PATIENT]
    arms = {(arm.name, times): _in_times(model, arm, times, costs) for arm in plain for times in (1, *TIMES)}
    between = [(f"{name}_x{times}", name) for name, times in arms if times > 1]
    between += [(arms[JOINT, times].name, arms[name, times].name) for name, times in arms if name != JOINT]
    for treated in ("ti_lora", "core_lora", ATTENTION_LORA):
        others = [name for name in ("ti", "ti_lora", "dreambooth-lora") if name != treated]
        between += [(arms[treated, times].name, arms[other, times].name) for other in others for times in (1, *TIMES)]
    return replace(part, name=LONGER, arms=tuple(arms.values()), pairs=tuple(between))


def _in_times(model: DiffusersModel, arm: Pipeline, times: int, costs: Costs | None) -> Pipeline:
    """The pipeline in `times` the seconds, its second stage in `times` the steps."""
    if times == 1:
        return arm
    values = dict(arm.planned["values"])
    values |= {"second_steps": times * values["second_steps"]} if arm.second else {}
    made = pipeline(model, {**RECIPES, **ATTENTIVE}[arm.name], values, costs, times)
    return replace(made, name=f"{arm.name}_x{times}", label=f"{arm.label}, {times} times the seconds")


def late_part(model: DiffusersModel) -> Comparison:
    """What a LoRA gives back that acts not before `LATE_START` of the sampling: the leaders that have one, both ways
    with the same training."""
    return _made_of_pipelines(model, _late)


def _late(part: Comparison) -> Comparison:
    plain = {arm.name: arm for arm in part.arms if arm.name in (PLAIN, *LORAS)}
    late = [later(plain[name]) for name in LORAS]
    between = [(f"{name}_{LATE}", name) for name in LORAS]
    between += [(f"{name}_{LATE}", PLAIN) for name in LORAS]
    between += [(f"{JOINT}_{LATE}", f"{name}_{LATE}") for name in LORAS if name != JOINT]
    return replace(part, name=LATE, arms=(*plain.values(), *late), pairs=tuple(between))


def later(arm: Pipeline) -> Pipeline:
    """The pipeline with its LoRA from `LATE_START` of the sampling on."""
    return replace(arm, name=f"{arm.name}_{LATE}", label=f"{arm.label}, LoRA later", lora_start=LATE_START)


def _leading(part: Comparison) -> Comparison:
    arms = tuple(arm for arm in part.arms if arm.name in LEADERS)
    between = tuple(pair for pair in part.pairs if set(pair) <= set(LEADERS))
    return replace(part, name=LEADING, arms=arms, pairs=between)


def _prepared(model: DiffusersModel, folder: Path, results: Path) -> Comparison:
    record = record_for(model, results)
    costs = completed(model, folder, as_costs(record["costs"])) if record else measured_costs(model, folder)
    part = _compared(model, record.get("chosen", {}), record.get("best", JOINT), costs, predicted=encoder_fits(model))
    trial = update_wrapper(partial(run_pipeline_trial, stages=folder / STAGES), run_pipeline_trial)
    return replace(part, trial=trial, facts={"costs": as_data(costs)})


def encoder_fits(model: DiffusersModel) -> bool:
    """Whether the bundled tuning-encoder was trained on this model; it is said where it was not."""
    images, network = loaded(None)
    try:
        require_fit(model, images, network)
    except ValueError as error:
        print(f"without the tuning-encoder: {error}")
        return False
    return True


def record_for(model: DiffusersModel, results: Path) -> Mapping[str, Any]:
    """What `search` has written into RESULTS on this very model; nothing where there is none, which is said."""
    if not (found := finished_search(model, results / RECORD)):
        print(
            f"{results / RECORD} has no search on model {model.fingerprint} to its end: recommended weights, costs "
            "measured now"
        )
    return found


def finished_search(model: DiffusersModel, file: Path) -> Mapping[str, Any]:
    """The record of a search on this very model to its end; nothing where there is none."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    whole = found.get("model") == model.fingerprint and found.get("complete", True)
    return found if whole else {}


def _compared(
    model: DiffusersModel,
    chosen: Mapping[str, Mapping[str, Any]],
    best: str,
    costs: Costs | None,
    predicted: bool = True,
) -> Comparison:
    arms = [pipeline(model, recipe, inherited(model, recipe, chosen), costs) for recipe in RECIPES.values()]
    base = next(arm for arm in arms if arm.name == best)
    arms += [PREDICTED] if predicted else []
    arms += [
        repaired(base, "repair", "prompts that fail repaired"),
        repaired(base, "redraw", "prompts that fail drawn again"),
    ]
    there = {arm.name for arm in arms}
    known = tuple(pair for pair in pairs(best) if set(pair) <= there and pair[0] != pair[1])
    return Comparison(PART, tuple(arms), known, run_pipeline_trial, leads=leading_table)


def pairs(best: str) -> tuple[tuple[str, str], ...]:
    """(treated, control): regularizers and second stages against none, and whole pipelines against other methods."""
    ends = [f"_{second}" if second else "" for second in SECOND]
    found = [(f"{first}{end}", f"ti{end}") for end in ends for first in FIRST if first != "ti"]
    found += [(f"{first}_lora", first) for first in FIRST]
    found += [(f"{first}_{kind}", f"{first}_lora") for kind in ("tlora", "self") for first in FIRST]
    found += [(f"{first}_lora", other) for first in FIRST for other in ("dreambooth-lora", "custom-diffusion")]
    found += [(f"{other}_mlm", other) for other in ("dreambooth-lora", "custom-diffusion")]
    found += [(f"word-lora_{name}", "word-lora") for name in FIRST if name != "ti"]
    found += [("word-lora" if name == "ti" else f"word-lora_{name}", f"{name}_lora") for name in FIRST]
    found += [(one, "ti") for one in ("core_lora", "mlm_lora", "word-lora", "word-lora_core")]
    found += [("word-lora_core", "ti_lora")]
    found += [(f"word-lora{end}", other) for end in ("", "_core") for other in ("dreambooth-lora", "custom-diffusion")]
    found += [("xti", "ti"), ("xti_mlm", "ti"), ("xti_mlm", "xti"), ("dti", "ti"), ("predicted", "ti_lora")]
    found += [(best, "dreambooth-lora_mlm"), (f"{best}_repair", best), (f"{best}_repair", f"{best}_redraw")]
    return tuple(found)
