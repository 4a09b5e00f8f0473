"""One picture, one word on the command line, with the bundled model: from pretraining to trials."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("tyro")

from PIL import Image

from contextual_inversion.cli import encoder_trials
from contextual_inversion.cli.main import main
from contextual_inversion.core.files import load_concept
from contextual_inversion.core.world.concepts import concept_images
from contextual_inversion.core.world.scenes import IMAGE_SIZE

WIDTHS = {"clip_l": 128}


def command(folder: Path, name: str, *arguments: object) -> dict:
    """The figures of a command that succeeds."""
    report = folder / f"{name}.json"
    assert main([name, *map(str, arguments), "--json", str(report)]) == 0
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    file = folder / "mine.safetensors"
    options = ("--world", 8, "--steps", 2, "--batch", 2, "--ema", 0.5, "--previews", folder, "--preview-every", 2)
    report = command(folder, "pretrain-encoder", *options, "--out", file)
    assert Path(report["file"]) == file
    assert report["bytes"] == file.stat().st_size
    assert (report["steps"], report["processes"]) == (2, 1)
    assert Image.open(next(folder.glob("*.png"))).size == (4 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    assert main(["pretrain-encoder", "--out", str(file)]) == 1  # what took hours is not written over
    return file


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "my goblet.png"
    images, _, _ = concept_images("goblet", 1, seed=0)
    Image.fromarray(images[0]).save(file)
    return file


def test_a_picture_becomes_a_word_and_tuning_goes_on_from_it(encoder, picture, tmp_path):
    options = ("--encoder", encoder, "--class-word", "goblet", "--name", "cup")
    predicted = command(tmp_path, "predict", picture, *options, "--out", tmp_path / "one")
    before = load_concept(predicted["bundle"], widths=WIDTHS)
    assert (before.name, before.class_word) == ("cup", "goblet")
    assert before.hard_token == predicted["hard_token"]
    assert predicted["numbers"] == sum(value.numel() for value in before.lora.values())
    more = ("--predicted", predicted["bundle"], "--steps", 1, "--batch", 1, "--alpha", 0.5)
    tuned = command(tmp_path, "tune", picture, *options, *more, "--out", tmp_path / "two")
    after = load_concept(tuned["bundle"], widths=WIDTHS)
    assert not torch.equal(after.vectors["clip_l"], before.vectors["clip_l"])
    assert tuned["tuned"]["seconds"] > 0
    alone = load_concept(tuned["embedding"], widths=WIDTHS)
    torch.testing.assert_close(alone.vectors["clip_l"], after.vectors["clip_l"])


def test_mistakes_say_what_to_do(encoder, picture, capsys, monkeypatch):
    monkeypatch.delenv("CONTEXTUAL_INVERSION_TRACEBACK", raising=False)
    assert main(["tune", str(picture), "--encoder", str(encoder), "--steps", "13"]) == 1
    assert "12 steps at most" in capsys.readouterr().err
    assert main(["predict", str(picture), "--encoder", str(encoder), "--model", str(picture.parent)]) == 1
    assert main(["pretrain-encoder", "--world", "4", "--pictures", str(picture.parent)]) == 1
    assert "give one of" in capsys.readouterr().err


def test_trials_judge_every_way_and_are_not_done_twice(encoder, tmp_path, monkeypatch):
    ways = {
        "predicted, dual path": ("predicted-dual", {"steps": 0, "dual": True}),
        "+ 1 step": ("tuned-1", {"steps": 1}),
        "plain TI, 1 step": ("ti-1", {"inverted": 1}),
    }
    monkeypatch.setattr(encoder_trials, "METHODS", ways)
    monkeypatch.setattr(encoder_trials, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(encoder_trials, "draw", partial(encoder_trials.draw, steps=2))
    options = ("--encoder", encoder, "--folder", tmp_path / "cells", "--concepts", "castle", "--seeds", 1)
    first = command(tmp_path, "encoder-trials", *options, "--prompts", 2)
    assert [trial["method"] for trial in first["trials"]] == list(first["means"]) == list(ways)
    assert all(0 <= trial["fidelity"] <= 1 and trial["seconds"] > 0 for trial in first["trials"])
    monkeypatch.setattr(encoder_trials, "run_cell", None)
    assert command(tmp_path, "encoder-trials", *options, "--prompts", 2)["trials"] == first["trials"]
