"""The search for weights: it sees development concepts alone, goes on where it was, and writes what it chose."""

import json
from types import SimpleNamespace

import pytest
from priced_stages import COSTS, NARROW

from contextual_inversion.cli import main as cli
from contextual_inversion.cli.experiments import claims, search, searching
from contextual_inversion.cli.experiments.pipelines import SEARCHED, Pipeline, recommended
from contextual_inversion.core.world.concepts import CONCEPTS
from contextual_inversion.core.world.development import FOUR


@pytest.fixture
def fake(monkeypatch):
    """Trials that take no time: the better, the nearer the word's rate to 1e-2. `seen` has all that were made."""
    seen: list[tuple[Pipeline, str, int]] = []
    state = SimpleNamespace(seen=seen, stop_after=None)

    def trial(model, arm, name, seed, *, count, plain):
        if len(seen) == state.stop_after:
            raise KeyboardInterrupt
        seen.append((arm, name, seed))
        values = arm.planned["values"]
        good = 1 / (1 + abs(values.get("learning_rate", 1e-2) - 1e-2)) - (0.001 * seed if name == "goblet" else 0)
        figures = dict.fromkeys(("fidelity", "recognised", "concept_score", "seconds"), 0.5)
        return SimpleNamespace(figures={**figures, "composed": good, "planned": dict(arm.planned)})

    monkeypatch.setattr(searching, "run_pipeline_trial", trial)
    monkeypatch.setattr(searching, "demo_model", lambda: NARROW)
    monkeypatch.setattr(searching, "measured_costs", lambda model, folder: COSTS)
    monkeypatch.setattr(claims, "_loaded", lambda: NARROW)
    return state


def test_it_looks_at_development_concepts_alone_and_chooses_the_best(fake, tmp_path):
    report, cells = search.main(folder=tmp_path, candidates=6, seeds=2), len(claims.DEVELOPMENT)
    assert {name for _, name, _ in fake.seen} == set(claims.DEVELOPMENT)
    assert {one["recipe"] for one in report["trials"]} == set(report["chosen"]) == set(SEARCHED)
    for name, found in report["searches"].items():
        tried = found["candidates"]
        assert tried[0] == recommended(NARROW, SEARCHED[name])
        rates = [one.get("learning_rate", 1e-2) for one in tried]
        nearest = min(range(6), key=lambda index: abs(rates[index] - 1e-2))
        assert report["chosen"][name] == tried[nearest]
        # All at first, half of them on twice as many cells then.
        assert [(len(one["ranked"]), len(one["kept"]), one["cells"]) for one in found["rounds"]] == [
            (6, 3, cells),
            (3, 1, 2 * cells),
        ]
    assert len(fake.seen) == len(report["trials"]) == len(SEARCHED) * (6 * cells + 3 * cells)
    assert report["model"] == "model"
    assert report["best"] in SEARCHED


def test_the_four_that_are_never_judged_are_for_development():
    assert {*claims.DEVELOPMENT} == {"crested-bird", "goblet", *FOUR}


@pytest.mark.parametrize("name", [name for name in CONCEPTS if name not in claims.DEVELOPMENT])
def test_a_judged_concept_is_refused(name, fake, tmp_path, capsys):
    with pytest.raises(ValueError, match=f"development concepts.*{name} cannot be used"):
        search.main(folder=tmp_path, concepts=("goblet", name))
    assert fake.seen == []
    assert cli.main(["search", "--concepts", name]) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"recipes": ("nothing",)}, {"seeds": 0}, {"workers": 0},
                                   {"prompts": -1}, {"candidates": 0}, {"recipes": ("ti_tlora",)}])  # fmt: skip
def test_what_cannot_be_searched_is_refused(wrong, fake, tmp_path):
    with pytest.raises(ValueError, match=r"\w"):
        search.main(folder=tmp_path, **wrong)
    assert fake.seen == []


@pytest.mark.parametrize("stop_after", [0, 1, 7, 15])
def test_an_interrupted_search_ends_with_the_same_record(stop_after, fake, tmp_path):
    chosen = {"recipes": ("core", "mlm_lora"), "candidates": 4, "seeds": 2}
    whole = search.main(folder=tmp_path / "whole", **chosen)
    made = list(fake.seen)
    fake.seen.clear()
    fake.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        search.main(folder=tmp_path / "parts", **chosen)
    fake.stop_after = None
    assert search.main(folder=tmp_path / "parts", **chosen) == whole
    assert fake.seen == made  # each once, in the same order
    assert search.main(folder=tmp_path / "parts", **chosen) == whole
    assert fake.seen == made


def test_another_model_begins_anew(fake, tmp_path, monkeypatch):
    chosen = {"recipes": ("ti",), "candidates": 1, "seeds": 1}
    search.main(folder=tmp_path, **chosen)
    other = SimpleNamespace(**{**vars(NARROW), "fingerprint": "another"})
    monkeypatch.setattr(searching, "demo_model", lambda: other)
    assert search.main(folder=tmp_path, **chosen)["model"] == "another"
    assert len(fake.seen) == 2 * len(claims.DEVELOPMENT)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "another"}


def test_the_record_is_written_and_named_at_the_end(fake, tmp_path, capsys):
    target = tmp_path / "search.json"
    options = ["--recipes", "ti", "ti_lora", "--candidates", "3", "--folder", str(tmp_path / "trials")]
    assert cli.main(["search", *options, "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    said = capsys.readouterr().out
    for name, values in record["chosen"].items():
        assert f"| {name} | " in said
        assert all(f"{key} {value:g}" in said for key, value in values.items())
    assert said.rstrip().endswith(f"best: {record['best']}")
    assert record["costs"].keys() == COSTS.keys()


def test_more_development_concepts_are_one_line(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "DEVELOPMENT", ("goblet", "crested-bird", "moth"))
    search.main(folder=tmp_path, recipes=("ti",), candidates=2, seeds=1)
    assert {name for _, name, _ in fake.seen} == {"goblet", "crested-bird", "moth"}


@pytest.fixture
def first(fake, tmp_path):
    """The file of a first search, of two recipes, of which nobody knows how often to regularize."""
    file = tmp_path / "first.json"
    options = ("--recipes", "ti_lora", "word-lora_core", "--candidates", "4", "--folder", str(tmp_path / "a"))
    assert cli.main(["search", *options, "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    del record["chosen"]["word-lora_core"]["regularize_every"]
    file.write_text(json.dumps(record))
    fake.seen.clear()
    return file


def test_a_second_search_lies_around_what_the_first_chose(fake, first, tmp_path):
    centres = json.loads(first.read_text())["chosen"]
    report = search.main(recipes=("word-lora_core",), folder=tmp_path / "b", candidates=8, around=first)
    tried = report["searches"]["word-lora_core"]["candidates"]
    centre = centres["word-lora_core"]
    assert tried[0] == {**centre, "regularize_every": 1}
    for one in tried[1:]:
        for key in ("learning_rate", "core_embedding", "weight_rate"):
            assert centre[key] / 2.01 <= one[key] <= centre[key] * 2.01
    # An axis that the first one had not is free.
    assert {one["regularize_every"] for one in tried} == {1, 2, 4}
    # What the first has published of its choice is not trained again.
    again = [arm for arm, _, _ in fake.seen if arm.planned["values"] == tried[0]]
    assert len(again) < len(claims.DEVELOPMENT) * 2
    assert report["around"] == "first.json"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"model": "another"}, "another model or judge"), ({"weights": "x"}, "another model or judge"),
     ({"chosen": {"ti": {}}}, "chosen nothing for word-lora_core: --recipes may be ti")],
)  # fmt: skip
def test_there_has_to_be_something_to_search_around(change, why, fake, first, tmp_path):
    first.write_text(json.dumps({**json.loads(first.read_text()), **change}))
    with pytest.raises(ValueError, match=why):
        search.main(recipes=("word-lora_core",), folder=tmp_path / "b", around=first)
    assert fake.seen == []
