"""Two trainers side by side: what is noted of a run, and what is made of it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from contextual_inversion.cli.bench import peer, runs
from contextual_inversion.cli.bench.command import peer_table
from contextual_inversion.core.training.run import noted


def run(step, first, weights, beyond, count=4):
    """What a run notes whose steps take `step` seconds of the processor, and twice that on the clock."""
    ends = [first + index * step for index in range(count)]
    return {"steps": [{"processor": end, "clock": 2 * end, "bytes": weights + beyond} for end in ends]}


def test_ratios_are_of_the_same_turn_and_their_median():
    found = {
        "peer": [run(8, 20, 100, 50), run(16, 40, 100, 50), run(8, 20, 100, 50)],
        "ti": [run(4, 10, 100, 20), run(8, 20, 100, 20), run(6, 30, 100, 25)],
        "other": [run(2, 5, 100, 10)] * 3,
    }
    figures = peer.compared(found, 100, processor=True)
    assert figures["ti_over_peer"] == pytest.approx(0.5)
    assert figures["first_step_over_peer"] == pytest.approx(0.5)
    assert figures["memory_over_peer"] == pytest.approx(0.4)
    assert figures["other_over_peer"] == pytest.approx(0.25)
    assert figures["other_memory_over_peer"] == pytest.approx(0.2)
    assert (figures["peer_step"], figures["ti_first_step"]) == (8, 20)
    assert peer.compared(found, 100, processor=False)["peer_step"] == 16
    shown = peer_table(figures).splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["peer", "ti"]


def test_the_weights_that_both_hold_are_counted_in_single_precision(tmp_path):
    for part, name in (("unet", "a"), ("text_encoder", "b"), ("vae", "c")):
        (tmp_path / part).mkdir()
        save_file({name: torch.zeros(3, 5, dtype=torch.float16)}, tmp_path / part / "model.safetensors")
    assert peer.weight_bytes(tmp_path) == 2 * 15 * 4


def test_every_optimisers_steps_are_noted():
    steps = []
    leaf = torch.zeros(1, requires_grad=True)
    leaf.grad = torch.ones(1)
    optimizer = torch.optim.SGD([leaf], 0.1)
    handle = noted.note_steps(steps)
    try:
        optimizer.step()
        optimizer.step()
    finally:
        handle.remove()
    optimizer.step()
    assert len(steps) == 2
    assert 0 < steps[0]["processor"] <= steps[1]["processor"]
    assert steps[0]["bytes"] > 2**20


def test_a_script_is_run_as_it_is_and_its_failure_told(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys, torch\n"
        "if __name__ == '__main__':\n"
        "    if '--fail' in sys.argv: raise RuntimeError('no such picture')\n"
        "    leaf = torch.zeros(1, requires_grad=True); leaf.grad = torch.ones(1)\n"
        "    optimizer = torch.optim.AdamW([leaf])\n"
        "    for _ in range(int(sys.argv[1])): optimizer.step()\n"
    )
    noted = runs.watched(("script", str(script), "3"), tmp_path / "report.json")
    assert len(noted["steps"]) == 3
    assert noted == json.loads((tmp_path / "report.json").read_text())
    with pytest.raises(RuntimeError, match="no such picture"):
        runs.watched(("script", str(script), "--fail"), tmp_path / "other.json")


def test_a_comfyui_that_cannot_is_left_out_with_its_reason_and_the_others_go_on(tmp_path, monkeypatch):
    asked = []

    def watched(run, report):
        asked.append(run[0])
        if run[0] == "comfy":
            raise RuntimeError("a run in ComfyUI failed:\nCould not detect model type")
        return {"steps": []}

    monkeypatch.setattr(runs, "watched", watched)
    three, unable = {"peer": ("script",), "ti": ("command",), "comfy": ("comfy",)}, {}
    found = runs.in_turns(three, 3, tmp_path, unable)
    assert {name: len(notes) for name, notes in found.items()} == {"peer": 3, "ti": 3}
    assert unable == {"comfy": "Could not detect model type"}
    assert asked == ["script", "command", "comfy", "command", "script", "script", "command"]
    with pytest.raises(RuntimeError, match="Could not detect"):
        runs.in_turns(three, 1, tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="--model: there is no"):
        peer.require(tmp_path, tmp_path / "trainer.py")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="--peer: there is no"):
        peer.require(tmp_path, tmp_path / "trainer.py")
    peer.require(tmp_path, tmp_path / "model_index.json")


def test_both_are_asked_for_the_same(tmp_path):
    theirs = dict(part[2:].split("=", 1) for part in peer.peer_run(tmp_path, tmp_path, tmp_path / "p", 64, 3, 5)[2:])
    own = runs.own_run(tmp_path, tmp_path / "p", 64, 3, 5)
    ours = dict(zip(own[2::2], own[3::2], strict=True))
    for one, other in (("resolution", "resolution"), ("train_batch_size", "batch"), ("max_train_steps", "steps")):
        assert theirs[one] == ours[f"--{other}"]
    assert theirs["learning_rate"] == ours["--learning-rate"]
    assert theirs["initializer_token"] == ours["--class-word"]
