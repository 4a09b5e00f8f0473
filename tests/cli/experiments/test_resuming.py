"""Long runs on several machines: what is published is taken up, and what stops early is published."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from priced_stages import COSTS, NARROW

from contextual_inversion.cli import main as cli
from contextual_inversion.cli.experiments import claim_parts, claims, resuming, search, searching
from contextual_inversion.cli.experiments.paper_tables import gathered
from contextual_inversion.cli.experiments.pipelines import Cost
from contextual_inversion.cli.experiments.resuming import Stopped, done_of, end_of, published, take_up, with_nan
from contextual_inversion.cli.experiments.tables import END, START
from contextual_inversion.cli.experiments.trials import Arm, Comparison

BEGIN = {"claims": ("claims", "--parts", "toy", "--concepts", "moth", "castle", "--seeds", "2"),
         "search": ("search", "--recipes", "core", "mlm_lora", "--candidates", "4",
                    "--concepts", "goblet", "teapot")}  # fmt: skip
TRIALS = {"claims": 2 * 2 * 2, "search": 2 * (4 * 2 + 2 * 2)}


@pytest.fixture
def toy(monkeypatch):
    """Both commands with trials that take no time; `stop` is what the trial of that number does in place of one."""
    state = SimpleNamespace(made=[], stop=None, at=None)

    def trial(model, arm, name, seed, **_):
        if len(state.made) == state.at:
            state.at = None
            state.stop()
        state.made.append((arm.name, dict(arm.changes), name, seed))
        rate = arm.changes.get("learning_rate", 0.01)
        figures = {key: seed + 10 * rate + len(name) / 7 for key in ("fidelity", "recognised", "composed", "seconds")}
        nothing = {"style": math.nan, "core": arm.core, "plain_prompt": {"style": math.nan, "fidelity": 1.0}}
        figures |= {
            "method": arm.name,
            "label": arm.label,
            "concept": name,
            "seed": seed,
            "concept_score": 0.5,
            **nothing,
        }
        return SimpleNamespace(figures={**figures, "planned": dict(getattr(arm, "planned", {}))})

    arms = (Arm("ti", "plain TI"), Arm("core", "CoRe", core=(0.1, 0.2)))
    part = Comparison("toy", arms, (), trial, facts={"told": [1]})
    paired = replace(part, name="paired", pairs=(("core", "ti"),))
    for one in (part, paired):
        monkeypatch.setitem(claim_parts.PARTS, one.name, lambda model, one=one: one)
    monkeypatch.setattr(searching, "run_pipeline_trial", trial)
    monkeypatch.setattr(searching, "demo_model", lambda: NARROW)
    monkeypatch.setattr(searching, "measured_costs", lambda model, folder: COSTS)
    monkeypatch.setattr(claims, "_loaded", lambda: NARROW)
    monkeypatch.setattr(claims, "commit", lambda: "abc")
    monkeypatch.setattr(searching, "commit", lambda: "abc")
    return state


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)  # which the signal cuts short


def run(name, folder, target, *more):
    """A command with its trials in `folder`, and no results of others."""
    others = ("--results", str(folder / "none")) if name == "claims" else ()
    return cli.main([*BEGIN[name], "--folder", str(folder), "--json", str(target), *others, *more])


@pytest.mark.parametrize("name", BEGIN)
@pytest.mark.parametrize(("stop", "why"), [(interrupt, "interrupted"), (terminate, "terminated")])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_interrupted_run_publishes_and_another_machine_does_the_rest(name, stop, why, at, toy, tmp_path, capsys):
    assert run(name, tmp_path / "whole", tmp_path / "whole.json") == 0
    made, toy.made[:] = list(toy.made), []
    assert len(made) == TRIALS[name]
    toy.stop, toy.at = stop, at
    target = tmp_path / "parts.json"
    handler = signal.getsignal(signal.SIGTERM)
    assert run(name, tmp_path / "first", target) == 130
    assert signal.getsignal(signal.SIGTERM) == handler
    told = json.loads(target.read_text())
    assert (told["complete"], told["done"], told["of"]) == (False, at, len(made))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"{why}: {at} of {len(made)} trials are done; {target} has them, and the same command goes on")
    assert toy.made == made[:at]
    assert run(name, tmp_path / "second", target) == 0
    assert toy.made == made
    assert target.read_text() == (tmp_path / "whole.json").read_text()
    assert "complete" not in json.loads(target.read_text())


@pytest.mark.parametrize("name", BEGIN)
def test_no_trial_is_begun_after_the_hours(name, toy, tmp_path, capsys, monkeypatch):
    target = tmp_path / "f.json"
    assert run(name, tmp_path / "a", target, "--hours", "1e-9") == 0
    assert toy.made == []
    assert "the hours are over: 0 of" in capsys.readouterr().out.splitlines()[-1]
    toy.stop, toy.at = interrupt, 5
    assert run(name, tmp_path / "a", target) == 130
    # What is there is looked at, however late it is.
    assert run(name, tmp_path / "b", target, "--hours", "1e-9") == 0
    assert (json.loads(target.read_text())["done"], len(toy.made)) == (5, 5)
    assert run(name, tmp_path / "c", target, "--hours", "1000") == 0
    assert "complete" not in json.loads(target.read_text())
    with pytest.raises(ValueError, match="--hours"):
        end_of(-1.0)


def test_an_unfinished_run_writes_no_tables_and_counts_in_none(toy, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(before := f"{START.format('paired')}\nold\n{END.format('paired')}\n")
    toy.stop, toy.at = interrupt, 6
    more = ("--parts", "paired", "--markdown", str(page))
    assert run("claims", tmp_path / "a", tmp_path / "r" / "f.json", *more) == 130
    assert page.read_text() == before
    assert gathered(tmp_path / "r", {}) == {}
    assert run("claims", tmp_path / "a", tmp_path / "r" / "f.json", *more) == 0
    assert "CoRe against plain TI" in page.read_text()
    assert gathered(tmp_path / "r", {})["paired"]["told"] == [1]


def test_trials_are_taken_up_from_the_results_of_others_too(toy, tmp_path):
    results = tmp_path / "results"
    assert run("claims", tmp_path / "a", results / "other.json") == 0
    toy.made.clear()
    options = {"concepts": ("moth", "castle"), "seeds": 2, "results": results}
    report = claims.main(("toy",), tmp_path / "b", **options)
    assert toy.made == []
    assert json.dumps(cli.plain(report)) == json.dumps(json.loads((results / "other.json").read_text()))
    more = claims.main(("toy",), tmp_path / "b", **{**options, "concepts": ("moth", "castle", "racer")})
    assert {name for _, _, name, _ in toy.made} == {"racer"}
    assert len(more["parts"]["toy"]["trials"]) == 12


def test_a_trial_has_the_names_of_the_part_that_shows_it(toy, tmp_path, monkeypatch):
    assert run("claims", tmp_path / "a", tmp_path / "results" / "other.json") == 0
    toy.made.clear()
    part = claim_parts.PARTS["toy"](None)
    other = replace(
        part, name="other", arms=tuple(replace(arm, name=arm.name[::-1], label="other") for arm in part.arms)
    )
    monkeypatch.setitem(claim_parts.PARTS, "other", lambda model: other)
    options = {"concepts": ("moth", "castle"), "seeds": 2, "results": tmp_path / "results"}
    found = claims.main(("other",), tmp_path / "b", **options)["parts"]["other"]["trials"]
    assert toy.made == []
    assert {(one["method"], one["label"]) for one in found} == {("it", "other"), ("eroc", "other")}


@pytest.mark.parametrize("other", [{"model": "another"}, {"weights": "others"}])
def test_another_models_trials_and_another_judges_are_not_taken(other, toy, tmp_path):
    target = tmp_path / "f.json"
    assert run("claims", tmp_path / "a", target) == 0
    target.write_text(json.dumps({**json.loads(target.read_text()), **other}))
    assert run("claims", tmp_path / "b", target) == 0
    assert len(toy.made) == 2 * TRIALS["claims"]


def test_only_cells_that_are_asked_for_become_files(tmp_path):
    record = {"model": "m", "weights": "w", "trials": [{"cell": "../../out", "x": 1}, {"cell": "in", "style": None}]}
    (tmp_path / "f.json").write_text(json.dumps(record))
    found = published([tmp_path / "f.json", tmp_path / "none.json"], "m", "w")
    take_up(tmp_path / "t", found, ["in", "absent"])
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["in.json"]
    assert math.isnan(resuming.read_kept(tmp_path / "t", "in")["style"])
    take_up(tmp_path / "t", {"in": {"x": 2}}, ["in"])
    assert "x" not in resuming.read_kept(tmp_path / "t", "in")
    (tmp_path / "f.json").write_text("{")
    with pytest.raises(ValueError, match=r"f\.json holds no figures of an earlier run"):
        published([tmp_path / "f.json"], "m", "w")
    (tmp_path / "f.json").write_text("")
    assert published([tmp_path / "f.json"], "m", "w") == {}


def test_null_is_nan_where_it_is_a_measure_alone():
    back = with_nan({"style": None, "core": None, "course": [{"skl": None, "step": 1}]})
    assert back["core"] is None
    assert math.isnan(back["style"])
    assert math.isnan(back["course"][0]["skl"])


def test_costs_of_a_published_search_are_its_plan_on_another_machine(toy, tmp_path, monkeypatch):
    def measured(model, folder):
        path = Path(folder) / "step-costs.json"
        return {key: Cost(**one) for key, one in json.loads(path.read_text()).items()} if path.exists() else COSTS

    monkeypatch.setattr(searching, "measured_costs", measured)
    target = tmp_path / "f.json"
    toy.stop, toy.at = interrupt, 3
    assert run("search", tmp_path / "a", target) == 130
    dearer = {key: Cost(0.0, 2.0) for key in COSTS}
    monkeypatch.setattr(searching, "measured_costs", lambda m, f: measured(m, f) if Path(f).exists() else dearer)
    assert run("search", tmp_path / "b", target) == 0
    assert json.loads(target.read_text())["costs"]["ti"] == {"begin": 0.0, "step": 1.0}
    assert len(toy.made) == TRIALS["search"]


def test_figures_come_with_the_interruption(toy, tmp_path):
    toy.stop, toy.at = interrupt, 2
    with pytest.raises(Stopped, match="2 of 24 trials are done; they are kept, and --json") as stop:
        search.main(recipes=("core", "mlm_lora"), folder=tmp_path, candidates=4, concepts=("goblet", "teapot"))
    assert len(stop.value.figures["trials"]) == 2


def test_what_was_finished_before_the_interruption_counts(tmp_path):
    """A worker's trial may be in the folder before its result has come."""
    resuming.keep(tmp_path, "b", {"x": 2})

    def work():
        yield "a", {"x": 1}
        raise KeyboardInterrupt

    done, stop = done_of(work(), ["a", "b", "c"], tmp_path)
    assert done == {"a": {"x": 1}, "b": {"x": 2}}
    assert isinstance(stop, KeyboardInterrupt)
