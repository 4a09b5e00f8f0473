"""Whole pipelines: equal seconds, what was chosen for them, their tables, and both stages on the bundled model."""

import json
import math
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from contextual_inversion.cli.experiments import (
    claims,
    pipeline_costs,
    pipeline_parts,
    pipeline_trials,
    pipelines,
    search,
    searching,
)
from contextual_inversion.cli.experiments.claims import cell_name
from contextual_inversion.cli.experiments.defaults import JOINT, LATE_START
from contextual_inversion.cli.experiments.pipeline_figure import pipelines_figure, write_figure
from contextual_inversion.cli.experiments.pipeline_parts import (
    AROUND,
    ATTENTIVE,
    LEADERS,
    LORAS,
    PATIENT,
    RECORD,
    TIMES,
    attention_part,
    exchanged_part,
    late_part,
    later,
    leaders_part,
    longer_part,
    pairs,
    pipelines_part,
)
from contextual_inversion.cli.experiments.pipeline_tables import leading_table, pipelines_table
from contextual_inversion.cli.experiments.pipeline_trials import redrawn, run_pipeline_trial
from contextual_inversion.cli.experiments.pipelines import (
    FIRST,
    RECIPES,
    SEARCHED,
    SECOND,
    Cost,
    Pipeline,
    budget,
    inherited,
    pipeline,
    recommended,
    repaired,
)
from contextual_inversion.cli.experiments.tables import END, START
from contextual_inversion.cli.experiments.trials import Arm, Comparison, arm_key, choices, demo_model, learn
from contextual_inversion.core.inspection.world import world_evaluation
from contextual_inversion.core.training.plan import plan
from contextual_inversion.core.world.prompts import EvaluationPrompt

NARROW = SimpleNamespace(
    text_encoders={"clip_l": SimpleNamespace(width=128)},
    schedule=SimpleNamespace(prediction_type="v_prediction"),
    fingerprint="narrow",
)
STAGES = {one.first_cost({"core_attention": weight}) for one in RECIPES.values() for weight in (0.0, 1.0)}
ALL = STAGES | {"lora", "tlora", "self"}
seconds = st.floats(0.05, 1.0)
costs_of = st.fixed_dictionaries({name: st.builds(Cost, st.floats(0, 1), seconds) for name in ALL})


@given(costs_of, st.sampled_from(sorted(RECIPES)), st.integers(1, 40), st.sampled_from([0.0, 0.5]), st.integers(1, 4))
def test_every_pipeline_takes_the_same_seconds_to_within_a_step(costs, name, second_steps, attention, every):
    recipe = RECIPES[name]
    own = recommended(NARROW, recipe)
    chosen = {"second_steps": second_steps, "core_attention": attention, "regularize_every": every}
    values = {**own, **{key: value for key, value in chosen.items() if key in own}}
    whole, cost = budget(costs), costs[recipe.first_cost(values)]
    # Of so many steps one has the regularizers, the others are plain ones.
    seldom = values.get("regularize_every", 1)
    cost = replace(cost, step=(cost.step + (seldom - 1) * costs[recipe.method].step) / seldom)
    second = max(costs[kind].step for kind in SECOND if kind) * second_steps if recipe.second else 0.0
    try:
        arm = pipeline(NARROW, recipe, values, costs)
    except ValueError:
        assert whole - cost.begin - second < cost.step + 2  # nothing is left, whatever the second stage's beginning
        return
    first, after = arm.steps
    assert after == (second_steps if recipe.second else 0)
    begin = cost.begin + (arm.planned["cost_of_second"][0] if recipe.second else 0)
    spent = begin + first * cost.step + second
    assert spent <= whole + 1e-9 < spent + cost.step + 2e-9
    assert arm.planned["budget"] == whole
    assert arm.planned["values"] == values
    assert arm.changes.get("regularize_every", 1) == seldom


@given(costs_of)
def test_all_kinds_of_second_stage_begin_with_the_same_word(costs):
    for name in FIRST:
        try:
            ends = [pipeline(NARROW, RECIPES[f"{name}_{end}"], {"second_steps": 1}, costs) for end in SECOND if end]
        except ValueError:
            continue
        plain, ranked, inner = ends
        for one in (ranked, inner):
            assert (one.core, one.mlm, one.changes) == (plain.core, plain.mlm, plain.changes)
        assert ranked.second == {**plain.second, "least_rank": 4}
        assert inner.second == {**plain.second, "only_layers": ("attn1",)}


def test_a_recipe_trains_what_it_says():
    arms = {arm.name: arm for arm in pipelines_part(NARROW).arms}
    assert [name for name in arms if name in RECIPES] == list(RECIPES)
    assert {RECIPES[name].second for name in RECIPES.keys() - SEARCHED.keys()} == {"tlora", "self"}
    for name, recipe in RECIPES.items():
        arm = arms[name]
        made = choices(arm, "moth", "butterfly", 1)
        settings = made.recipe.settings("butterfly", **made.settings)
        assert settings.method == recipe.method
        assert (settings.norm_mode == "dti") == (name == "dti")
        assert [one.name for one in made.added] == ["core"] * recipe.core + ["mlm"] * recipe.mlm
        assert (arm.second is not None) == bool(recipe.second)
    assert len({arm_key(arm) for arm in arms.values()}) == len(arms)


def test_word_and_lora_together_are_searched_without_and_with_each_regularizer():
    arms = {name: pipeline(NARROW, recipe) for name, recipe in RECIPES.items() if recipe.method == "word-lora"}
    found = {name: (arm.core is not None, arm.mlm is not None) for name, arm in arms.items()}
    assert found == {
        "word-lora": (False, False),
        "word-lora_core": (True, False),
        "word-lora_mlm": (False, True),
        "word-lora_core_mlm": (True, True),
    }
    assert found.keys() <= SEARCHED.keys()
    for name, arm in arms.items():
        assert (arm.second, arm.changes["rank"], arm.label.count("+")) == (None, 8, sum(found[name]))
        assert plan(demo_model(), choices(arm, "castle", "house", 1)).settings.method == "word-lora"
    assert {("word-lora_mlm", "word-lora"), ("word-lora_core_mlm", "core_mlm_lora")} <= set(pairs("mlm_lora"))


def test_the_leaders_are_the_same_trials_as_among_all_pipelines(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: True)
    (tmp_path / RECORD).write_text(json.dumps(record("narrow")))
    folders = (NARROW, tmp_path, tmp_path)
    whole, few = (make(NARROW).prepared(*folders) for make in (pipelines_part, leaders_part))
    assert [arm.name for arm in few.arms] == [name for name in RECIPES if name in LEADERS]
    assert {arm_key(arm) for arm in few.arms} <= {arm_key(arm) for arm in whole.arms}
    assert set(few.pairs) == {pair for pair in whole.pairs if set(pair) <= set(LEADERS)}
    assert ("word-lora_core", "ti") in few.pairs
    assert few.facts == whole.facts
    assert cell_name(few, few.arms[0], "moth", 1) == cell_name(whole, whole.arms[0], "moth", 1)


def test_an_exchange_changes_what_it_says_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    chosen = {"ti_lora": {"rank": 8, "second_steps": 60}, "core_lora": {"rank": 2, "second_steps": 50}}
    (tmp_path / RECORD).write_text(json.dumps(record("narrow", chosen=chosen)))
    part = exchanged_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    arms = {arm.name: arm for arm in part.arms}
    plain, core = arms["ti_lora"], arms["core_lora"]
    assert (plain.steps, core.steps) == ((139, 60), (149, 50))
    words = {name: (arm.core, arm.steps[0]) for name, arm in arms.items()}
    assert words == {
        "ti_lora": (None, 139),
        "core_lora": (core.core, 149),
        "ti_lora_of_core": (None, 139),
        "core_lora_of_ti": (core.core, 149),
        "ti_short_lora": (None, 149),
        "core_long_lora_of_ti": (core.core, 139),
    }
    assert {name for name, arm in arms.items() if arm.second == core.second} == {"core_lora", "ti_lora_of_core"}
    assert all(arm.second == plain.second for name, arm in arms.items() if not name.endswith(("core", "core_lora")))
    assert len({arm_key(arm) for arm in arms.values()}) == len(arms)
    assert set(sum(part.pairs, ())) == arms.keys()
    # The two pipelines themselves are the trials that others have of them.
    whole = pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    assert {cell_name(whole, arm, "moth", 1) for arm in whole.arms} >= {
        cell_name(part, one, "moth", 1) for one in (plain, core)
    }


def test_a_lora_that_begins_later_is_of_the_same_training(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    (tmp_path / RECORD).write_text(json.dumps(record("narrow")))
    part = late_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    arms = {arm.name: arm for arm in part.arms}
    late = {name: arm for name, arm in arms.items() if arm.lora_start}
    assert late.keys() == {f"{name}_late" for name in LORAS}
    assert {arm.lora_start for arm in late.values()} == {LATE_START}
    for name, arm in late.items():
        plain = arms[name.removesuffix("_late")]
        assert (arm_key(arm.learned), arm.steps) == (arm_key(plain), plain.steps)
    assert len({arm_key(arm) for arm in arms.values()}) == len(arms)
    assert set(sum(part.pairs, ())) == arms.keys()


def test_both_ways_of_drawing_train_once(quick, tmp_path, monkeypatch):
    model, trained = demo_model(), []
    monkeypatch.setattr(pipeline_trials, "learn", lambda *args: trained.append(args[1]) or learn(*args))
    starts, real = set(), pipeline_trials.draw

    def drawing(*args, lora_start, **more):
        starts.add(lora_start)
        return real(*args, **more)

    monkeypatch.setattr(pipeline_trials, "draw", drawing)
    plain = pipeline(model, RECIPES["ti_lora"], {"second_steps": 1})
    plain = replace(plain, changes={**plain.changes, "steps": 1, "batch": 1})
    found = [run_pipeline_trial(model, arm, "moth", 1, stages=tmp_path) for arm in (plain, later(plain))]
    assert len(trained) == 1
    assert starts == {0.0, LATE_START}
    one, other = (trial.concept for trial in found)
    assert one.lora.keys() == other.lora.keys()
    assert all(torch.equal(value, other.lora[key]) for key, value in one.lora.items())
    assert found[0].figures["seconds"] > 0 < found[1].figures["seconds"]


def test_what_is_given_more_seconds_has_more_of_both_stages_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    chosen = {"ti_lora": {"rank": 2, "second_steps": 50}, "word-lora_core": {"core_embedding": 0.07}}
    (tmp_path / RECORD).write_text(json.dumps(record("narrow", chosen=chosen)))
    part = longer_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    arms = {arm.name: arm for arm in part.arms}
    assert len({arm_key(arm) for arm in arms.values()}) == len(arms) == len(PATIENT) * (1 + len(TIMES))
    # 200 steps of 0.2 seconds and 0.1 to begin each stage.
    assert {name: arm.steps for name, arm in arms.items() if name.startswith("ti")} == {
        "ti": (200, 0),
        "ti_x2": (400, 0),
        "ti_lora": (149, 50),
        "ti_lora_x2": (300, 100),
    }
    for name in PATIENT:
        for arm in (arms[f"{name}_x{times}"] for times in TIMES):
            assert (arm.core, arm.mlm) == (arms[name].core, arms[name].mlm)
            assert {**arm.changes, "steps": 0} == {**arms[name].changes, "steps": 0}
            assert {**(arm.second or {}), "steps": 0} == {**(arms[name].second or {}), "steps": 0}
    assert set(sum(part.pairs, ())) == arms.keys()
    whole = pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    among_all = {arm_key(arms[name]) for name in PATIENT if name not in ATTENTIVE}
    assert {arm_key(arm) for arm in whole.arms} >= among_all
    alone = attention_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    lora = next(arm for arm in alone.arms if arm.name == "attention_lora")
    assert arm_key(lora) == arm_key(arms["attention_lora"])


def test_cores_attention_loss_alone_changes_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    chosen = {"ti": {"learning_rate": 0.02}, "ti_lora": {"learning_rate": 0.003, "rank": 2, "second_steps": 40}}
    (tmp_path / RECORD).write_text(json.dumps(record("narrow", chosen=chosen)))
    part = attention_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    arms = {arm.name: arm for arm in part.arms}
    for name, plain in (("attention", arms["ti"]), ("attention_lora", arms["ti_lora"])):
        arm = arms[name]
        weight = recommended(NARROW, ATTENTIVE[name])["core_attention"]
        assert plain.core is arm.mlm is None
        assert arm.core == (0.0, weight)
        assert weight > 0
        assert arm.second == plain.second
        # CoRe's hold on the vector's length comes with it.
        own = {key: value for key, value in arm.changes.items() if key != "steps"}
        assert {**own, "norm_mode": "none"} == {key: plain.changes[key] for key in plain.changes if key != "steps"}
    assert set(sum(part.pairs, ())) == arms.keys()


def test_what_no_record_has_priced_is_measured_beside_what_it_has(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    measured = []

    def measure(model, only):
        measured.append(only)
        return {name: asdict(Cost(0.3, 0.6 if name == "ti" else 1.2)) for name in only}

    monkeypatch.setattr(pipeline_costs, "measure", measure)
    old = record("narrow")
    lacking = {name for name in old["costs"] if name.startswith("xti")}
    old["costs"] = {name: cost for name, cost in old["costs"].items() if name not in lacking}
    (tmp_path / RECORD).write_text(json.dumps(old))
    for _ in range(2):
        part = pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
        assert {arm.name for arm in part.arms} >= RECIPES.keys()
        # 0.6 seconds of plain textual inversion now are the record's 0.2.
        assert part.facts["costs"].items() >= old["costs"].items()
        for name in lacking:
            assert part.facts["costs"][name] == pytest.approx({"begin": 0.1, "step": 0.4})
    assert measured == [{"ti", *lacking}]
    assert "xti" in capsys.readouterr().out
    # Of another record's plan nothing is taken.
    (tmp_path / RECORD).write_text(json.dumps({**old, "costs": {**old["costs"], "ti": asdict(Cost(0.1, 0.25))}}))
    pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    assert len(measured) == 2


def test_what_was_not_searched_is_taken_from_the_most_alike():
    """From none to all of four searches: of every value the nearest recipe's, and none that does not fit."""
    lora = {"learning_rate": 0.01, "weight_rate": 1e-3, "rank": 2, "second_steps": 30}
    chosen = {
        "ti_lora": lora,
        "core_lora": {**lora, "learning_rate": 0.02, "core_embedding": 0.1, "core_attention": 0.5},
        "mlm": {"learning_rate": 0.03, "mlm": 0.04},
        "word-lora": {"learning_rate": 0.05, "weight_rate": 2e-3, "rank": 16},
        "dti": {"learning_rate": 0.06},
    }
    found = {name: inherited(NARROW, recipe, chosen) for name, recipe in RECIPES.items()}
    for name, values in chosen.items():
        assert found[name] == values
    assert found["ti_tlora"] == chosen["ti_lora"]
    assert found["core_mlm_self"] == {**chosen["core_lora"], "mlm": 0.04}
    assert found["mlm_lora"] == {**lora, "mlm": 0.04}
    assert found["ti"] == {"learning_rate": 0.03}
    assert found["word-lora_core"] == {**chosen["word-lora"], "core_embedding": 0.1, "core_attention": 0.5}
    assert found["dreambooth-lora_mlm"] == {"mlm": 0.04}
    assert found["custom-diffusion"] == {}
    for name, recipe in RECIPES.items():
        assert inherited(NARROW, recipe, {}) == {}
        assert found[name].keys() <= recommended(NARROW, recipe).keys()


def test_what_is_chosen_is_what_is_trained():
    values = {"learning_rate": 0.02, "core_embedding": 0.1, "core_attention": 0.0, "mlm": 0.01, "weight_rate": 3e-3,
              "rank": 8, "second_steps": 7}  # fmt: skip
    arm = pipeline(NARROW, RECIPES["core_mlm_tlora"], values)
    assert (arm.core, arm.mlm[0], arm.changes["learning_rate"]) == ((0.1, 0.0), 0.01, 0.02)
    assert arm.second == {"steps": 7, "weight_rate": 3e-3, "rank": 8, "least_rank": 4}
    other = pipeline(NARROW, RECIPES["dreambooth-lora"], {"weight_rate": 3e-3, "rank": 8})
    assert (other.changes["weight_rate"], other.changes["rank"], other.second) == (3e-3, 8, None)
    assert pipelines.least(1) == 1


def record(model, **more):
    costs = {name: asdict(Cost(0.1, 0.2)) for name in ALL}
    return {"model": model, "costs": costs, "best": "core_lora", **more}


def test_the_part_goes_by_a_search_on_the_same_model_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: True)
    measured = dict.fromkeys(ALL, Cost(0, 1))
    monkeypatch.setattr(pipeline_parts, "measured_costs", lambda model, folder: measured)
    chosen = {"core_lora": {"core_embedding": 0.07, "second_steps": 50}}
    (tmp_path / RECORD).write_text(json.dumps(record("narrow", chosen=chosen)))
    arms = {arm.name: arm for arm in pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path).arms}
    for name in ("core_lora", "core_tlora", "core_lora_repair", "core_lora_redraw"):
        assert (arms[name].core[0], arms[name].steps[1]) == (0.07, 50)
    # Who was not searched has a regularizer's weight from the one that was, and nothing of how that trains.
    assert arms["core"].core[0] == arms["word-lora_core_mlm"].core[0] == 0.07
    assert arms["core_mlm_lora"].steps[1] == 50 != arms["core"].steps[1]
    # 200 steps of 0.2 seconds and 0.1 to begin each: what 50 leave is 149.
    assert arms["ti"].steps == (200, 0)
    assert arms["core_lora"].steps == (149, 50)
    assert "no search" not in capsys.readouterr().out
    (tmp_path / RECORD).write_text(json.dumps(record("another", chosen=chosen)))
    part = pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
    assert {arm.name: arm for arm in part.arms}["core_lora"].core[0] != 0.07
    assert f"{JOINT}_repair" in {arm.name for arm in part.arms}
    assert "no search on model narrow" in capsys.readouterr().out


def test_what_a_second_search_chose_stands_beside_the_leaders(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    chosen = {"ti_lora": {"learning_rate": 0.03, "second_steps": 50}, "core_lora": {"core_embedding": 0.07}}
    (tmp_path / RECORD).write_text(json.dumps(record("narrow", chosen=chosen)))
    own = {"core_embedding": 0.05, "regularize_every": 2}
    second = {"model": "narrow", "chosen": {"ti_lora": chosen["ti_lora"], "core_lora": own}}

    def prepared(part=leaders_part):
        made = part(NARROW).prepared(NARROW, tmp_path, tmp_path)
        return {arm.name: arm for arm in made.arms}, set(made.pairs)

    for other in (None, {"complete": False}, {"model": "another"}):
        if other:
            (tmp_path / AROUND).write_text(json.dumps({**second, **other}))
        assert prepared()[0].keys() == set(LEADERS)
    before, pairs_before = prepared()
    (tmp_path / AROUND).write_text(json.dumps(second))
    arms, between = prepared()
    # What it left as it was is no other pipeline.
    assert arms.keys() - before.keys() == {"core_lora_again"}
    again = arms["core_lora_again"]
    assert (again.core[0], again.changes["regularize_every"]) == (0.05, 2)
    assert {name: arm_key(arm) for name, arm in arms.items() if name in before} == {
        name: arm_key(arm) for name, arm in before.items()
    }
    assert between - pairs_before == {
        ("core_lora_again", other) for other in ("core_lora", "ti", "ti_lora", "dreambooth-lora")
    }
    whole, _ = prepared(pipelines_part)
    assert (whole["core_lora"].core[0], whole["core_tlora"].core[0]) == (0.07, 0.07)


def test_whichever_is_best_is_repaired_and_every_pair_is_of_two(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)
    for best in RECIPES:
        (tmp_path / RECORD).write_text(json.dumps({**record("narrow"), "best": best}))
        part = pipelines_part(NARROW).prepared(NARROW, tmp_path, tmp_path)
        names = {arm.name for arm in part.arms}
        assert names == {*RECIPES, f"{best}_repair", f"{best}_redraw"}
        assert all(one != other and {one, other} <= names for one, other in part.pairs)
        assert (f"{best}_repair", f"{best}_redraw") in part.pairs
        assert len(set(pairs(best))) == len(pairs(best)) or best == "dreambooth-lora_mlm"


def test_an_encoder_of_another_model_is_left_out_and_said(monkeypatch, capsys):
    def require_fit(model, images, network):
        if model != "the encoder's":
            raise ValueError("it is for another model")

    monkeypatch.setattr(pipeline_parts, "loaded", lambda encoder: ("images", "network"))
    monkeypatch.setattr(pipeline_parts, "require_fit", require_fit)
    assert pipeline_parts.encoder_fits("the encoder's")
    assert capsys.readouterr().out == ""
    assert not pipeline_parts.encoder_fits("another")
    assert "without the tuning-encoder: it is for another model" in capsys.readouterr().out


def stored(method, label, *both):
    return [
        {"method": method, "label": label, "concept": concept, "seed": 1, "composed": value, "fidelity": 0.5,
         "recognised": value, "similarity": 0.25, "seconds": 40.0, "steps": 100, "second_steps": 20 * (method == "b")}
        for concept, value in zip(("moth", "castle"), both, strict=True)
    ]  # fmt: skip


def test_the_first_table_is_sorted_by_what_is_recognised_and_obeyed(tmp_path):
    trials = [*stored("a", "A", 0.1, 0.2), *stored("b", "B", 0.6, 0.4), *stored("c", "C", 0.3, 0.3)]
    lines = leading_table([Arm(name, name.upper()) for name in "abc"], trials)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| B", "| C", "| A"]
    assert lines[2] == "| B | **0.500** (0.400 to 0.600) | 0.500 | 0.500 | 0.250 | 100 + 20 | 40.0 |"
    assert pipelines_table({}) == []
    part = Comparison("pipelines", (Arm("a", "A"),), (), leads=lambda arms, trials: ["first", *trials[0]])
    assert claims.as_markdown(part, {"trials": trials[:2], "comparisons": []})[0] == "first"
    page = tmp_path / "README.md"
    page.write_text(f"{START.format('pipeline-figures')}\n{END.format('pipeline-figures')}\n")
    claims.write_summaries([page], {"pipelines": {"trials": trials}})
    assert lines[2] in page.read_text()


def test_the_picture_says_what_the_table_says(tmp_path):
    trials = [*stored("a", "A", 0.1, 0.2), *stored("b", "B", 0.6, 0.4), *stored("c", "C", 0.3, 0.3)]
    arms = [Arm(name, name.upper()) for name in "abc"]
    left, right = pipelines_figure(arms, trials).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["B", "C", "A"]
    assert left.yaxis_inverted()
    (points, _, (bars,)) = left.containers[0]
    assert points.get_xydata() == pytest.approx(np.array([[0.5, 0], [0.3, 1], [0.15, 2]]))
    assert np.array(bars.get_segments())[:, :, 0] == pytest.approx(np.array([[0.4, 0.6], [0.3, 0.3], [0.1, 0.2]]))
    obeyed, shown = right.get_lines()
    assert (list(obeyed.get_xdata()), list(shown.get_xdata())) == ([0.5] * 3, pytest.approx([0.5, 0.3, 0.15]))
    write_figure(arms, trials, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        picture.load()
        assert picture.size == (1045, 210)


@pytest.mark.parametrize("repairs", ["repair", "redraw"])
def test_only_prompts_that_fail_are_drawn_again_and_only_once(repairs, monkeypatch):
    drawn = []

    def draw(model, templates, seeds, *, concept):
        drawn.append((templates[0], seeds[0], concept))
        return np.full((1, 2, 2, 3), 9, np.uint8)

    monkeypatch.setattr(pipeline_trials, "draw", draw)
    monkeypatch.setattr(pipeline_trials, "repaired_for", lambda model, concept, prompt, seed: f"{concept} for {prompt}")

    def obeyed(pictures, prompts):
        """A picture of ones is wrong; of the two that are drawn again, that of prompt 2 stays wrong."""
        return [one.max() != 1 and prompt.text != "2" for one, prompt in zip(pictures, prompts, strict=True)]

    monkeypatch.setattr(pipeline_trials, "obeyed", obeyed)
    prompts = [EvaluationPrompt(str(index)) for index in range(4)]
    before = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (5, 1, 5, 5)])
    arm = repaired(pipeline(NARROW, RECIPES["ti_lora"]), repairs, "again")
    after, found = redrawn(None, arm, "word", before, prompts, 3)
    assert found == {"failing": 2, "mended": 1}
    assert [int(one.max()) for one in after] == [5, 9, 9, 5]
    assert int(before[1].max()) == 1
    own = ["word for 1", "word for 2"] if repairs == "repair" else ["word", "word"]
    later = 0 if repairs == "repair" else pipeline_trials.ANOTHER
    assert drawn == [(str(n), 3000 + n + later, word) for n, word in zip((1, 2), own, strict=True)]


@pytest.fixture
def quick(monkeypatch):
    """Everything of a pipeline, with few steps, few pictures and two recipes."""
    few = {name: RECIPES[name] for name in ("mlm", "mlm_lora")}
    monkeypatch.setattr(pipelines, "SECOND_STEPS", 2)
    monkeypatch.setattr(pipelines, "BUDGET", {"ti": 5})
    monkeypatch.setattr(pipeline_parts, "RECIPES", few)
    monkeypatch.setattr(pipeline_parts, "JOINT", "mlm_lora")
    monkeypatch.setattr(pipeline_costs, "RECIPES", {**few, "ti": RECIPES["ti"]})
    monkeypatch.setattr(pipeline_trials, "draw", partial(world_evaluation.draw, steps=2))
    first = [EvaluationPrompt("a photo of a {} on lava", "lava"), EvaluationPrompt("a {} by night", "night")]
    monkeypatch.setattr(pipeline_trials, "held_out_prompts", lambda background: first)
    monkeypatch.setattr(pipeline_trials, "STEPS", 1)
    monkeypatch.setitem(run_pipeline_trial.__kwdefaults__, "plain", 1)
    monkeypatch.setitem(searching.SPACE, "second_steps", searching.Range(1, 2, whole=True))
    monkeypatch.setattr(pipeline_parts, "encoder_fits", lambda model: False)


def test_from_the_search_to_the_table_on_the_bundled_model(quick, tmp_path, monkeypatch):
    """Costs are measured, weights chosen on a development concept, and another one judged with them."""
    model = demo_model()
    real = {name: Cost(**cost) for name, cost in pipeline_costs.measure(model, turns=1, steps=1, warm=1).items()}
    assert set(real) == {"ti", "ti+mlm", "lora"}
    assert all(cost.begin > 0 < cost.step for cost in real.values())
    same = dict.fromkeys([*real, "tlora", "self"], Cost(0.0, 1.0))
    monkeypatch.setattr(searching, "measured_costs", lambda model, folder: same)
    made = search.main(recipes=("mlm_lora",), folder=tmp_path / "a", concepts=("goblet",), candidates=2, seeds=1)
    assert len(made["trials"]) == 2
    trial = made["trials"][0]
    assert trial["planned"]["values"] == recommended(model, RECIPES["mlm_lora"])
    assert (trial["steps"], trial["second_steps"]) == (3, 2)
    assert trial["seconds"] > 0
    (tmp_path / RECORD).write_text(json.dumps(made))
    page = tmp_path / "page.md"
    page.write_text(f"{START.format('pipelines')}\n{END.format('pipelines')}\n")
    options = {"concepts": ("castle",), "seeds": 1, "markdown": (page,), "results": tmp_path, "figures": tmp_path}
    report = claims.main(("pipelines",), tmp_path / "b", **options)
    trials = {one["method"]: one for one in report["parts"]["pipelines"]["trials"]}
    assert set(trials) == {"mlm", "mlm_lora", "mlm_lora_repair", "mlm_lora_redraw"}
    assert trials["mlm_lora"]["planned"]["values"] == made["chosen"]["mlm_lora"]
    assert trials["mlm"]["steps"] == 5
    assert trials["mlm_lora_repair"]["failing"] == trials["mlm_lora_redraw"]["failing"]
    assert "recognised and obeyed (95 % interval)" in page.read_text().splitlines()[1]
    assert (tmp_path / "pipelines.png").is_file()
    again = claims.main(("pipelines",), tmp_path / "b", **options)
    assert json.dumps(again) == json.dumps(report)  # in which "not asked for" is NaN


@pytest.mark.parametrize("end", ["lora", "tlora", "self"])
def test_the_second_stage_trains_weights_around_a_word_that_stays(end):
    model = demo_model()
    values = {"second_steps": 1, "rank": 4}
    arm = pipeline(model, RECIPES[f"ti_{end}"], values)
    short = Pipeline(arm.name, arm.label, changes={**arm.changes, "steps": 1, "batch": 1}, second=arm.second)
    alone = Pipeline("ti", "TI", changes=short.changes)
    pictures = np.zeros((1, 128, 128, 3), np.uint8)
    (one, _), (both, _) = (
        pipeline_trials.learned(model, one, "castle", "house", pictures, 1)[:2] for one in (alone, short)
    )
    assert all((both.vectors[name] == value).all() for name, value in one.vectors.items())
    assert one.lora is None
    assert both.lora
    settings = both.provenance["settings"]
    assert (settings["method"], settings["rank"]) == ("refine", 4)
    assert settings["least_rank"] == (2 if end == "tlora" else None)
    assert {"attn1" in name for name in both.lora} == ({True} if end == "self" else {True, False})
    assert plan(model, choices(short, "castle", "house", 1)).settings.norm_mode == "none"
    assert not math.isnan(float(next(iter(both.lora.values())).sum()))


def test_a_prediction_is_tuned_and_drawn_over_two_paths(monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline_trials, "word", lambda model, images, network, way, *rest: seen.append(way) or "word")
    monkeypatch.setattr(pipeline_trials, "draw_dual", lambda model, templates, seeds, *, concept: (concept, seeds))
    concept, drawing, before = pipeline_trials.learned(
        demo_model(), pipeline_parts.PREDICTED, "castle", "house", np.zeros((4, 128, 128, 3), np.uint8), 1
    )
    assert (concept, drawing(["a {}"], [5])) == ("word", ("word", [5]))
    assert (seen[0].dual, seen[0].steps, before) == (True, 12, 0)


def test_a_trial_is_judged_on_as_many_prompts_as_are_asked_for(quick):
    arm = Pipeline("ti", "TI", changes={"norm_mode": "none", "steps": 1, "batch": 1})
    found = run_pipeline_trial(demo_model(), arm, "castle", 1, count=1, plain=0)
    assert (len(found.pictures), found.figures["pictures"]) == (1, 1)
    assert "plain_prompt" not in found.figures


def test_what_begins_alike_is_trained_once_and_ends_alike(quick, tmp_path, monkeypatch):
    first = {"norm_mode": "none", "steps": 2, "batch": 1}
    lora = Pipeline("ti_lora", "TI + LoRA", changes=first, second={"steps": 2, "rank": 2})
    alone = run_pipeline_trial(demo_model(), lora, "castle", 1, count=1, plain=0)
    trained = []
    monkeypatch.setattr(pipeline_trials, "learn", lambda *given: trained.append(given[1].steps) or learn(*given))
    tried = replace(lora, second={**lora.second, "least_rank": 1})
    run = partial(run_pipeline_trial, demo_model(), name="castle", seed=1, count=1, plain=0, stages=tmp_path / "kept")
    found = [run(arm) for arm in (replace(lora, name="ti", second=None), tried, lora)]
    assert trained == [(2, 0)]
    assert all(one.figures["seconds"] > 0 for one in found)
    same = found[-1].concept
    assert torch.equal(same.vectors["clip_l"], alone.concept.vectors["clip_l"])
    assert same.lora.keys() == alone.concept.lora.keys()
    assert all(torch.equal(value, alone.concept.lora[key]) for key, value in same.lora.items())
    assert np.array_equal(found[-1].pictures, alone.pictures)
    run(replace(lora, changes={**first, "steps": 1}))
    assert trained == [(2, 0), (1, 0)]
