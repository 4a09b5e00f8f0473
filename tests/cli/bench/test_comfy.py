"""The same training by both adapters: what is asked for, what is made of it, and what is said without ComfyUI."""

import json
from types import SimpleNamespace

import pytest
import torch

from contextual_inversion.cli.bench import comfy, runs
from contextual_inversion.cli.bench.command import comfy_line
from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import save_embedding

SIZES = {"side": 64, "batch": 1, "repetitions": 1, "steps": 3}
START = {"clip_l": torch.zeros(1, 64)}


def noted(step, first=1.0, start_up=(0.5, 0.2, 0.3)):
    ends = [first + index * step for index in range(4)]
    return {"steps": [{"processor": end, "clock": end, "bytes": 1} for end in ends], "start_up": list(start_up)}


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_without_comfyui_the_keys_are_there_and_say_why(tmp_path, monkeypatch, where):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / where))
    found = comfy.comfy_figures("tiny", START, **SIZES)
    assert {key for key, value in found.items() if value is None} == set(comfy.KEYS)
    assert "COMFYUI_PATH" in found["comfy_why"]
    assert "\n" not in found["comfy_why"]
    assert found["comfy_why"] in comfy_line(found)
    assert json.loads(json.dumps(found)) == found


def test_a_comfyui_that_does_not_start_is_no_failure_of_the_bench(tmp_path, monkeypatch):
    (tmp_path / "comfy").mkdir()
    for name in ("__init__.py", "sd.py"):
        (tmp_path / "comfy" / name).touch()
    (tmp_path / "comfy" / "options.py").write_text("raise ImportError('no module named later')")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr(comfy, "own_run", lambda *_: ("script", str(trainer(tmp_path))))
    found = comfy.comfy_figures("tiny", START, **SIZES)
    assert found["start_up_s"] is None
    assert found["comfy_why"] == "ImportError: no module named later"


def trainer(folder):
    """A script with one step."""
    script = folder / "trainer.py"
    script.write_text("import torch\nleaf = torch.zeros(1, requires_grad=True)\ntorch.optim.SGD([leaf], 0.1).step()\n")
    return script


def test_a_model_that_comfyui_has_not_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(comfy, "find_comfyui", lambda: tmp_path)
    assert "--model" in comfy.comfy_figures("wide", START, **SIZES)["comfy_why"]


def test_ratios_are_of_the_same_turn_and_the_first_loading_stands_apart(monkeypatch):
    monkeypatch.setattr(comfy, "on_gpu", lambda: False)
    found = comfy.compared({
        "cli": [noted(1), noted(2), noted(4)],
        "comfy": [noted(2), noted(2), noted(12, start_up=(0.9, 0.4, 0.4))],
    })  # fmt: skip
    assert found["comfy_over_cli"] == pytest.approx(2)
    assert (found["comfy_ti_step_s"], found["comfy_cli_step_s"]) == (pytest.approx(2), pytest.approx(2))
    assert (found["start_up_s"], found["first_start_up_s"]) == (pytest.approx(0.3), pytest.approx(0.5))


def test_words_are_apart_by_a_share_of_their_way(tmp_path):
    files = []
    for name, second in (("one", 0.0), ("other", 0.3)):
        vector = torch.zeros(1, 64)
        vector[0, :2] = torch.tensor([3.0, second])
        files.append(save_embedding(Concept(name, "dog", {"clip_l": vector}), tmp_path))
    assert comfy.words_apart(START, *files) == pytest.approx(0.1)


def test_both_adapters_are_asked_for_the_same(tmp_path):
    own = runs.own_run("tiny", tmp_path / "p", 64, 3, 5)
    ours = dict(zip(own[2::2], own[3::2], strict=True))
    kind, request = comfy.comfy_run(tmp_path, "tiny", tmp_path / "p", 64, 3, 5)
    theirs = json.loads(request)
    assert kind == "comfy"
    for name in ("resolution", "batch", "steps", "model"):
        assert ours[f"--{name}"] == str(theirs[name])
    assert float(ours["--learning-rate"]) == theirs["learning_rate"]


def test_what_is_run_in_comfyui_is_a_module_of_the_nodes(tmp_path, monkeypatch):
    """By name alone: no command imports it."""
    called = []

    def run(call, **_):
        called.append(call)
        (tmp_path / "report").write_text("{}")
        return SimpleNamespace(returncode=0, stderr="", stdout="")

    monkeypatch.setattr(runs.subprocess, "run", run)
    runs.watched(("comfy", "{}"), tmp_path / "report")
    assert called[0][1:] == ["-m", "contextual_inversion.nodes.bench", str(tmp_path / "report"), "{}"]
