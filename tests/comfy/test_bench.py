"""The bench's ComfyUI side in a process of its own: the same word as by `train`, and the start-up that was measured."""

import pytest

pytest.importorskip("diffusers")

from contextual_inversion.cli.bench import comfy, runs
from contextual_inversion.cli.loading import load_model
from contextual_inversion.core.models.words import starting_vectors


def test_both_adapters_learn_the_same_word(comfyui_path, tmp_path):
    """Train Concept behind ComfyUI's own queue against the command, each in a process of its own."""
    start = {name: starting_vectors(one, "dog", 1) for name, one in load_model("tiny", "cpu").text_encoders.items()}
    pictures, steps = runs.write_pictures(tmp_path / "pictures", 64), 4
    both = {
        "cli": runs.own_run("tiny", pictures, 64, 2, steps),
        "comfy": comfy.comfy_run(comfyui_path, "tiny", pictures, 64, 2, steps, loads=2),
    }
    found = runs.in_turns(both, 1, tmp_path)
    assert comfy.words_apart(start, tmp_path / runs.WORD, comfy.out_of(pictures)) < 1e-3
    assert {name: len(one["steps"]) for name, (one,) in found.items()} == {"cli": steps, "comfy": steps}
    assert len(found["comfy"][0]["start_up"]) == 2
    assert min(found["comfy"][0]["start_up"]) > 0
