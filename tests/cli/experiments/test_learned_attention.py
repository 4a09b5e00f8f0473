"""`learned-attention`: every word is measured as `attention-report` measures it, and is learned once."""

import json

import pytest

from contextual_inversion.cli.main import main


def test_words_are_learned_once_and_measured_like_any_other(tmp_path, capsys):
    folder = tmp_path / "words"
    asked = ["learned-attention", "--concepts", "goblet", "--n", "2", "--steps", "1", "--folder", str(folder)]
    assert main([*asked, "--json", str(tmp_path / "report.json")]) == 0
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())
    assert list(report["methods"]) == ["class-word", "ti", "core", "mlm"]
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(kept) == 3

    found = {}
    for index, path in enumerate([None, *kept]):
        given = [] if path is None else ["--file", str(path)]
        one = ["attention-report", "--concept", "goblet", "--n", "2", "--seed", "1000", *given]
        assert main([*one, "--json", str(tmp_path / "one.json")]) == 0
        found[index] = json.loads((tmp_path / "one.json").read_text())
    for word in report["words"]:
        shares = [word["subject_inside"], word["background_outside"], word["all_layers"]["subject_inside"]]
        same = [
            [one["subject_inside"], one["background_outside"], one["all_layers"]["subject_inside"]]
            for one in found.values()
        ]
        assert any(shares == pytest.approx(other, rel=1e-5) for other in same)
        # One concept, one seed: a method is its word.
        method = report["methods"][word["method"]]
        assert method["subject_over_chance"] == pytest.approx(word["subject_over_chance"])
        low, high = method["subject_over_chance_interval"]
        assert low <= method["subject_over_chance"] <= high
        assert f"{word['subject_inside']:.3f}" in printed
    means = {label: method["background_over_chance"] for label, method in report["methods"].items()}
    for label, against in report["against_ti"].items():
        difference = against["background_over_chance"]["difference"]
        assert difference == pytest.approx(means[label] - means["ti"], abs=1e-5)

    assert main([*asked, "--json", str(tmp_path / "again.json")]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == kept
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["words"] == report["words"]


def test_an_unknown_concept_is_told(capsys):
    assert main(["learned-attention", "--concepts", "toaster"]) == 1
    assert "goblet" in capsys.readouterr().err
