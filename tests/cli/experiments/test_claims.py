"""What `claims` compares, what it keeps, and what it makes of it."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from contextual_inversion.cli.experiments import claims, quality_trials
from contextual_inversion.cli.experiments.claim_parts import KINDS, NORM_MODES, PARTS
from contextual_inversion.cli.experiments.claims import cell_name
from contextual_inversion.cli.experiments.paper_tables import (
    NOT_YET,
    ROWS,
    gathered,
    papers_table,
    provenance,
)
from contextual_inversion.cli.experiments.pipeline_parts import AGAIN, LEADERS, controls
from contextual_inversion.cli.experiments.quality_trials import first_reaching, reached_table, run_quality_trial
from contextual_inversion.cli.experiments.tables import END, START
from contextual_inversion.cli.experiments.trials import (
    Arm,
    Comparison,
    choices,
    demo_model,
    mlm_inversion,
)
from contextual_inversion.core.training.plan import plan
from contextual_inversion.core.training.presets import DEMO, demo_preset

NARROW = SimpleNamespace(
    text_encoders={"clip_l": SimpleNamespace(width=128)}, schedule=SimpleNamespace(prediction_type="v_prediction")
)


def test_every_pair_of_methods_is_of_one_without_and_with_regularizers():
    methods = PARTS["methods"](NARROW)
    assert len(methods.arms) == len(KINDS) * 4
    assert len(methods.pairs) == len(KINDS) * 3
    for treated, control in methods.pairs:
        ours, theirs = (next(one for one in methods.arms if one.name == name) for name in (treated, control))
        assert theirs.core is theirs.mlm is None
        assert ours.core or ours.mlm
        assert {**ours.changes, "norm_mode": ""} == {**theirs.changes, "norm_mode": ""}


def test_parts_share_the_trials_that_train_the_same_way():
    def cells(name):
        part = PARTS[name](NARROW)
        return {cell_name(part, method, "moth", 1) for method in part.arms}

    assert cells("core") < cells("mlm") < cells("methods")
    assert len(cells("norm-modes") & cells("core")) == len(cells("ablation") & cells("norm-modes")) - 1 == 1
    assert len(cells("prior") & cells("methods")) == 2
    assert cells("mlm") & cells("seldom") == cells("core") | {
        cell_name(PARTS["mlm"](NARROW), mlm_inversion(NARROW), "moth", 1)
    }
    # Judged otherwise, so kept elsewhere.
    assert not cells("time-to-quality") & cells("methods")


def test_the_plain_arm_is_the_recipe_of_the_bundled_model():
    arms = {method.name: method for method in PARTS["methods"](NARROW).arms}
    for kind in KINDS:
        recipe = demo_preset(kind).values
        assert {**DEMO.values, **arms[kind].changes} == {**recipe, "norm_mode": "none"}
        assert {**DEMO.values, **arms[f"{kind}_core"].changes} == recipe
    assert len(NORM_MODES) == len(PARTS["norm-modes"](NARROW).arms)


def test_a_regularizer_that_is_asked_seldom_is_otherwise_the_same():
    arms = {arm.name: arm for arm in PARTS["seldom"](NARROW).arms}
    assert list(arms) == ["ti", "core", "core_2", "core_3", "mlm", "mlm_3"]
    for name in ("core_2", "core_3", "mlm_3"):
        kind, every = name.split("_")
        changes = {**arms[kind].changes, "regularize_every": int(every)}
        assert arms[name] == replace(arms[kind], name=name, label=arms[name].label, changes=changes)
        assert plan(demo_model(), choices(arms[name], "moth", "butterfly", 1)).settings.regularize_every == int(every)


def test_prior_preservation_is_in_the_training_of_its_arms_alone():
    model = demo_model()
    made = {arm.name: plan(model, choices(arm, "moth", "butterfly", 3)) for arm in PARTS["prior"](model).arms}
    arms = {name: one.regularizers for name, one in made.items()}
    assert {name: [one.name for one in added] for name, added in arms.items()} == {
        "custom-diffusion": [],
        "dreambooth-lora": [],
        "custom-diffusion_prior": ["prior"],
        "dreambooth-lora_prior": ["prior"],
    }


def test_the_papers_rows_name_what_the_parts_compare():
    for row in ROWS:
        pairs = PARTS[row.part](NARROW).pairs
        if row.treated.endswith(AGAIN):  # which a record of a second search brings, with its controls
            name = row.treated.removesuffix(AGAIN)
            assert name in LEADERS
            pairs = [(row.treated, control) for control in controls(name)]
        assert (row.treated, row.control) in pairs, row
        assert row.measure in claims.MEASURES


def test_a_comparison_pairs_concepts_and_seeds_and_says_what_the_treated_one_gains():
    """Two concepts that gain 0.2 and 0.4: the interval is over concepts, whose seeds say nothing about another."""
    trials = []
    for seed in (1, 2, 3):
        for concept, gain in (("moth", 0.2), ("castle", 0.4)):
            plain = {"concept": concept, "seed": seed, "fidelity": 0.1 * seed, "leak": 0.5}
            trials.append({**plain, "method": "plain"})
            trials.insert(0, {**plain, "method": "new", "fidelity": plain["fidelity"] + gain})
    trials[0]["leak"] = math.nan
    (row,) = rows = claims.compare(trials, [("new", "plain")], ["fidelity", "leak", "style"])
    names = {"method": "new", "control": "plain", "measure": "fidelity", "pairs": 6}
    assert {key: row[key] for key in names} == names
    assert (row["control_mean"], row["mean"]) == (pytest.approx(0.2), pytest.approx(0.5))
    assert [row[key] for key in ("difference", "low", "high")] == [pytest.approx(v) for v in (0.3, 0.2, 0.4)]
    part = Comparison("some", (Arm("plain", "Plain"), Arm("new", "New")), (("new", "plain"),))
    lines = claims.as_markdown(part, {"trials": trials, "comparisons": rows})
    (glance,) = (line for line in lines if line.startswith("| New against Plain |"))
    assert glance == "| New against Plain | **+0.300 (+0.200 to +0.400)** |"
    assert claims.as_gain({**rows[0], "pairs": 4}, clear=True) == "+0.300 (+0.200 to +0.400)"
    assert claims.as_gain({**rows[0], "low": -0.1}, clear=True) == "+0.300 (-0.100 to +0.400)"
    assert lines.index(glance) < lines.index("**New against Plain**, 6 pairs")
    assert "| prompt fidelity | 0.200 | 0.500 | +0.300 (+0.200 to +0.400) |" in lines


def comparison(row, difference, low, high):
    means = {"control_mean": 0.5, "mean": 0.5 + difference, "difference": difference, "low": low, "high": high}
    return {"method": row.treated, "control": row.control, "measure": row.measure, "pairs": 7, **means}


@pytest.mark.parametrize(
    ("along", "verdict"),
    [((0.2, 0.1, 0.3), "same way"), ((-0.2, -0.3, -0.1), "**other way**"), ((0.2, -0.1, 0.3), "not clear")],
)
def test_a_row_says_whether_the_sign_is_the_papers(along, verdict):
    row = next(row for row in ROWS if row.sign == 1)
    parts = {row.part: {"comparisons": [comparison(row, *along)], "commit": "abc", "model": "def"}}
    lines = papers_table(parts)
    (line,) = [line for line in lines if row.what in line and row.table in line]
    assert line.endswith(f"| 7 | {verdict} |")
    assert f"{along[0]:+.3f}, {along[1]:+.3f} to {along[2]:+.3f}" in line
    assert sum(NOT_YET in line for line in lines) == len(ROWS) - 1
    few = {**parts[row.part]["comparisons"][0], "pairs": 4}
    (line,) = [
        line for line in papers_table({row.part: {"comparisons": [few]}}) if row.what in line and row.table in line
    ]
    assert line.endswith("| 4 | few pairs |")
    assert "commit abc, model def" in lines[-1]
    # Of a run that went on from another one's trials both are said.
    of_two = {"commit": "new", "model": "def", "trials": [{"commit": "a"}, {"commit": "b"}, {"commit": "a"}]}
    assert provenance({"core": of_two}, ["core"])[-1] == "Made by: core at commit a and b, model def."


def test_summaries_come_from_all_reports_and_the_newest_counts(tmp_path):
    own = {"method": "core_lora", "label": "CoRe + LoRA", "fidelity": 0.5, "recognised": 0.25, "similarity": 0.75}
    own |= {"concept": "moth", "steps": 75, "second_steps": 57, "seconds": 2.0}

    def report(shares):
        trials = [{**own, "seed": seed, "composed": share} for seed, share in enumerate(shares)]
        return {"commit": "new", "model": "m", "parts": {"pipelines": {"trials": trials, "comparisons": []}}}

    (tmp_path / "a.json").write_text(json.dumps(report([0.0])))
    (tmp_path / "b.json").write_text(json.dumps({"other": 1}))
    (tmp_path / "c.json").write_text(json.dumps({**report([0.25]), "complete": False}))
    pages = [tmp_path / "claims.md", tmp_path / "README.md"]
    for page, name in zip(pages, ("papers", "pipeline-figures"), strict=True):
        page.write_text(f"before\n{START.format(name)}\nold\n{END.format(name)}\nafter\n")
    claims.write_summaries(pages, gathered(tmp_path, report([0.5, 1.0])))
    text = pages[1].read_text()
    assert "| CoRe + LoRA | **0.750** (0.500 to 1.000) | 0.500 | 0.250 | 0.750 | 75 + 57 | 2.0 |" in text
    assert "old" not in text
    assert (text[:7], text[-7:]) == ("before\n", "\nafter\n")
    assert "commit new, model m" in text
    assert NOT_YET in pages[0].read_text()
    claims.main((), markdown=tuple(pages), results=tmp_path)
    assert "| CoRe + LoRA | **0.000** (0.000 to 0.000) |" in pages[1].read_text()


def test_quality_is_reached_where_it_first_is():
    def trial(method, seed, *similarities):
        at = [{"step": 25 * 2**i, "seconds": 10.0 * seed * i} for i in range(len(similarities))]
        figures = [{"fidelity": 1 - one, "similarity": one, "recognised": 0, "composed": 0} for one in similarities]
        return {"method": method, "course": [{**one, **other} for one, other in zip(at, figures, strict=True)]}

    trials = [trial("slow", 1, 0.1, 0.2), trial("slow", 3, 0.3, 0.6)]
    trials += [trial("quick", 1, 0.3, 0.5), trial("quick", 3, 0.7, 0.9)]
    lines = reached_table([Arm("slow", "Slow"), Arm("quick", "Quick")], trials)
    # The best of the slow one: similarity 0.4 after 50 steps, fidelity 0.8 after 25, never on the same step.
    assert "| Slow | 50 (20) | 25 (0) | never |" in lines
    assert "| Quick | 25 (0) | never | never |" in lines
    assert "| Quick | 50 | 20 | 0.300 | 0.000 | 0.000 | 0.700 |" in lines
    assert first_reaching([{"step": 1, "fidelity": 0.5}], {"fidelity": 0.5}) == {"step": 1, "fidelity": 0.5}


def test_one_training_is_judged_at_several_steps(monkeypatch):
    monkeypatch.setattr(quality_trials, "STEPS", (1, 2))
    monkeypatch.setattr(quality_trials, "draw", partial(quality_trials.draw, steps=2))
    first = quality_trials.held_out_prompts("grass")[:1]
    monkeypatch.setattr(quality_trials, "held_out_prompts", lambda background: first)
    arm = next(one for one in PARTS["methods"](NARROW).arms if one.name == "custom-diffusion")
    short = Arm(arm.name, arm.label, changes={**arm.changes, "steps": 2, "batch": 1})
    figures = run_quality_trial(demo_model(), short, "castle", 1).figures
    assert [at["step"] for at in figures["course"]] == [1, 2]
    assert 0 < figures["course"][0]["seconds"] < figures["course"][1]["seconds"] == figures["seconds"]
    assert figures["course"][0]["similarity"] != figures["course"][1]["similarity"] == figures["similarity"]
