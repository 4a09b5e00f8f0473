"""`train` and `bench` on the command line, with the stub in place of a real model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stub_model import StubModel

from contextual_inversion.cli import optimize
from contextual_inversion.cli import train as command
from contextual_inversion.cli.bench import comfy as bench_comfy
from contextual_inversion.cli.bench import command as bench
from contextual_inversion.cli.bench import mlm as bench_mlm
from contextual_inversion.core.files import load_concept
from contextual_inversion.core.files.pictures import read_as_tensor
from contextual_inversion.core.inspection.evaluation import BrokenPictureError
from contextual_inversion.core.prompts.rich import ListedPrompts
from contextual_inversion.core.training.presets import DEMO, PRESETS
from contextual_inversion.core.training.regularizers import context
from contextual_inversion.core.training.regularizers.context import CoReWeights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda name, device: StubModel())
    pictures = tmp_path / "my thing"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (2, 70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise[0]).save(pictures / "a.png")
    Image.fromarray(noise[1]).save(pictures / "b.jpg")
    (pictures / "notes.txt").write_text("not a picture")
    return pictures


def test_a_folder_of_pictures_becomes_files_that_hold_the_word(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {} in the snow\na {} at sea\n")
    keywords = {"class_word": "dog", "preset": "CoRe stage 1 (paper)", "steps": 3, "batch": 2, "prompts": str(prompts)}
    result = command.main(
        folder, out=tmp_path / "out", preview_every=3, events=tmp_path / "events.jsonl", resolution=64, **keywords
    )
    assert result["step"] == 3
    assert result["pictures"] == ["a.png", "b.jpg"]
    assert {"diffusion", "core/embedding", "core/attention"} == set(result["losses"])
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "started",
        "preview",  # before the first step
        "step",
        "step",
        "step",
        "preview",
        "checkpointsaved",
        "finished",
    ]
    widths = {"clip_l": 32}
    embedding, bundle = (load_concept(result[kind], widths=widths) for kind in ("embedding", "bundle"))
    assert torch.equal(embedding.vectors["clip_l"], bundle.vectors["clip_l"])
    assert Image.open(next((tmp_path / "out" / "previews").glob("*.png"))).size == (64, 64)
    again = command.main(folder, out=tmp_path / "out", resume=True, resolution=64, **keywords)
    assert torch.equal(load_concept(again["embedding"], widths=widths).vectors["clip_l"], embedding.vectors["clip_l"])


def test_core_in_every_second_step(folder, tmp_path):
    prompts, events = tmp_path / "prompts.txt", tmp_path / "events.jsonl"
    prompts.write_text("a {} in the snow\n")
    result = command.main(
        folder, class_word="dog", out=tmp_path / "out", steps=4, batch=2, prompts=str(prompts), core=True,
        resolution=64, events=events, regularize_every=2,
    )  # fmt: skip
    assert result["provenance"]["settings"]["regularize_every"] == 2
    *_, last = (line for line in map(json.loads, events.read_text().splitlines()) if line.get("losses"))
    assert [value is None for value in last["losses"]["core/embedding"]] == [False, True] * 2
    assert None not in last["losses"]["diffusion"]
    assert all(np.isfinite(value) for value in result["losses"].values())


@pytest.mark.parametrize(
    ("preset", "core", "rule"),
    [
        ("CoRe stage 1 (paper)", None, "core_window"),
        ("CoRe stage 1 (paper)", False, "none"),
        ("Fixed norm (DTI-like)", False, "dti"),
    ],
)
def test_the_rescaling_window_comes_and_goes_with_core(folder, tmp_path, preset, core, rule):
    keywords = {"class_word": "dog", "preset": preset, "core": core, "steps": 1, "batch": 1, "resolution": 64}
    made = command.main(folder, out=tmp_path, prompts="animate", **keywords)
    assert made["provenance"]["settings"]["norm_mode"] == rule
    assert ("core/embedding" in made["losses"]) == (core is None)


@pytest.mark.parametrize("method", ["xti", "custom-diffusion", "dreambooth-lora", "dreambooth"])
def test_any_method_then_the_second_stage_then_a_repair(folder, tmp_path, monkeypatch, method):
    monkeypatch.setattr(optimize, "load_model", lambda name, device: StubModel())
    monkeypatch.setattr(
        context, "recommended_weights", lambda model, method="ti": CoReWeights(1.0, 1.0, "large enough to see")
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {} in the snow\n")
    keywords = {"class_word": "dog", "steps": 3, "batch": 2, "prompts": str(prompts), "name": "thing"}
    keywords |= {"resolution": 64, "prior_pictures": 2, "keep_latents": True}
    keywords |= {} if method == "xti" else {"prior_weight": 1.0}
    made = command.main(folder, out=tmp_path / "one", method=method, learning_rate=0.05, **keywords)
    assert ("prior/diffusion" in made["losses"]) == (method != "xti")
    bundle = made["bundle"]
    if method == "xti":
        stage = {"method": "refine", "initial": made["bundle"], "least_rank": 1}
        refined = command.main(folder, out=tmp_path / "two", **stage, **keywords)
        assert refined["provenance"]["settings"]["least_rank"] == 1
        before, after = (load_concept(one["bundle"], widths={"clip_l": 32}) for one in (made, refined))
        assert torch.equal(before.layer_vectors["clip_l"], after.layer_vectors["clip_l"])
        assert after.lora
        bundle = refined["bundle"]
    repaired = optimize.main([bundle], prompt="a <thing> in the snow", out=tmp_path / "three", steps=3, size=64)
    assert set(repaired["losses"]) == {"core/embedding", "core/attention"}
    assert Image.open(repaired["picture"]).size == (128, 64)
    found = load_concept(repaired["files"][0], widths={"clip_l": 32})
    assert found.name == "thing_repaired"
    assert not torch.equal(found.vectors["clip_l"], load_concept(bundle, widths={"clip_l": 32}).vectors["clip_l"])


def test_a_word_that_is_trained_on_keeps_its_length_whatever_the_recipe_says(folder, tmp_path):
    keywords = {"class_word": "dog", "preset": "Fast", "core": False, "steps": 2, "batch": 1, "resolution": 64}
    first = command.main(folder, out=tmp_path / "one", vectors=3, **keywords)
    again = command.main(folder, out=tmp_path / "two", initial=first["bundle"], **keywords)
    assert load_concept(again["bundle"], widths={"clip_l": 32}).length == 3
    with pytest.raises(ValueError, match="this training needs"):
        command.main(folder, out=tmp_path / "two", initial=first["bundle"], vectors=2, **keywords)


def test_the_command_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(ValueError, match="no preset"):
        command.main(folder, class_word="dog", preset="nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no pictures"):
        command.main(tmp_path / "empty", class_word="dog")
    with pytest.raises(ValueError, match=r"\.\./evil"):
        command.main(folder, class_word="dog", name="../evil")
    with pytest.raises(ValueError, match="changes no weights"):
        command.main(folder, class_word="dog", method="xti", prior_weight=1.0, out=tmp_path / "out")
    (tmp_path / "masks").mkdir()
    Image.new("L", (90, 70)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(BrokenPictureError, match=r"no mask a\.png in"):
        command.main(folder, class_word="dog", masks=tmp_path / "masks")


def test_a_broken_picture_in_the_middle_is_named_and_skipped_only_if_asked(folder, tmp_path):
    whole = (folder / "a.png").read_bytes()
    (folder / "aa.png").write_bytes(whole[: len(whole) // 2])
    (folder / "ab.png").write_bytes(b"")
    keywords = {"class_word": "dog", "steps": 2, "batch": 2, "core": False, "resolution": 64, "out": tmp_path / "out"}
    with pytest.raises(BrokenPictureError, match=r"my thing/aa\.png cannot be read.*--skip-broken"):
        command.main(folder, **keywords)
    assert not (tmp_path / "out").exists()
    result = command.main(folder, skip_broken=True, **keywords)
    assert result["pictures"] == ["a.png", "b.jpg"]
    assert [note.partition(" cannot")[0].rpartition("/")[2] for note in result["skipped"]] == ["aa.png", "ab.png"]
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (90, 70)).save(masks / "a.png")
    Image.new("L", (90, 70), 255).save(masks / "b.png")
    with pytest.raises(BrokenPictureError, match=r"masks/a\.png is empty"):
        command.main(folder, masks=masks, **keywords)
    result = command.main(folder, masks=masks, skip_broken=True, **keywords)
    assert result["pictures"] == ["b.jpg"]
    Image.new("L", (90, 70)).save(masks / "b.png")
    with pytest.raises(BrokenPictureError, match="no picture can be used"):
        command.main(folder, masks=masks, skip_broken=True, **keywords)


def test_a_recipe_is_named_or_the_methods_and_the_bundled_model_has_its_own():
    assert command.recipe_for(None, None, "tiny") == command.recipe_for(None, "ti", "tiny") == DEMO
    assert command.recipe_for(None, "xti", "tiny").values["batch"] == DEMO.values["batch"]
    assert command.recipe_for("Fast", None, "tiny") == command.recipe_for("Fast", None, Path("sd")) == PRESETS["Fast"]
    assert command.recipe_for(None, None, Path("sd")) == next(iter(PRESETS.values()))
    assert command.recipe_for(None, "dreambooth", Path("sd")).method == "dreambooth"
    assert command.recipe_for("Fast", "xti", Path("sd")).method == "xti"
    for preset, method in (("Fast", "ti"), ("Fast", "dreambooth-lora"), ("DreamBooth, LoRA", "ti")):
        with pytest.raises(ValueError, match=f"the recipe '{preset}' is for"):
            command.recipe_for(preset, method, Path("sd"))


def test_pictures_are_turned_as_the_camera_says_and_transparency_is_white(tmp_path):
    turned = Image.new("RGB", (4, 2), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera stood upright
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert tuple(read_as_tensor(tmp_path / "turned.jpg").shape) == (4, 2, 3)
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(read_as_tensor(tmp_path / "clear.png"), torch.ones(3, 3, 3))


def test_bench_reports_its_figures(monkeypatch):
    # The stub is in no ComfyUI; tests/cli/bench has that path.
    monkeypatch.setattr(bench_comfy, "find_comfyui", lambda: None)
    monkeypatch.setattr(bench, "_model", lambda name, device: StubModel())
    # The stub has no room for rich prompts; with more room it would weigh more in what is counted below.
    monkeypatch.setattr(bench_mlm, "prompts", lambda subject: ListedPrompts(("a red {} in the snow", "my {} at sea")))
    result = bench.main(steps=3, repetitions=2, device="cpu", regularize_every=2)
    assert (result["regularize_every"], result["steps"]) == (2, 4)
    assert {"ti_step_s", "core_step_s", "core_over_ti", "peak_mb", "machine"} <= set(result)
    assert {"mlm_over_ti", "attention_over_plain", "dual_over_plain", "sd15_tuning_gb"} <= set(result)
    assert result["attention_batch"] == 2
    assert result["ti_step_s"] > 0
    # Operations do not depend on the machine. Twelve UNet batches for a plain step, eighteen with CoRe in
    # every second one, and text.
    assert 1.15 < result["core_over_ti_operations"] < 1.4
