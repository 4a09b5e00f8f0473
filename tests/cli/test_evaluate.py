"""`contextual-inversion evaluate`: folders in, figures, reports and contact sheets out; drawing is resumable too."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contextual_inversion.cli.main import main
from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import save_embedding
from contextual_inversion.core.world.render import concept_images

BESIDE = Path(__file__).parents[1] / "core" / "inspection" / "evaluation"
SUBJECTS = ("goblet", "castle")


def beside(name: str):
    spec = importlib.util.spec_from_file_location(f"evaluation_{name}", BESIDE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("clip_vision"), beside("random_encoders")
    made.save_clip(root / "clip-vit-base-patch32")
    made.save_dino(root / "dino-vits16")
    return root


@pytest.fixture
def world(tmp_path):
    """A dataset of two of ConceptWorld's things, two prompts, and words (of the class, nudged) in a folder."""
    lines = []
    for name in SUBJECTS:
        pictures, masks, class_word = concept_images(name, n=2)
        lines.append(f"{name}, {class_word}, inanimate\n")
        for index, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            beside("dataset_folders").write(tmp_path / "dataset" / name / f"{index}.png", picture)
            white = (mask.subject * 255).astype(np.uint8)
            beside("dataset_folders").write(tmp_path / "masks" / name / "references" / f"{index}.png", white)
        vectors = {"clip_l": torch.randn(1, 128, generator=torch.Generator().manual_seed(len(lines))) * 0.02}
        save_embedding(Concept(name, class_word, vectors), tmp_path / "words")
    (tmp_path / "dataset" / "classes.txt").write_text("".join(lines))
    (tmp_path / "prompts.txt").write_text("# place\na photo of a {} in the snow\n# style\na sketch of a {}\n")
    return tmp_path


@pytest.fixture
def run(world):
    """run(*options) -> exit code, with the bundled encoders and two pictures a prompt in two steps."""

    def evaluate(*options: str) -> int:
        fixed = ["--out", str(world / "out"), "--device", "cpu"]
        return main(["evaluate", str(world / "dataset"), *fixed, *options])

    return evaluate


@pytest.fixture
def drawing(world):
    """Options to draw with the bundled model, quickly and small."""
    fast = ["--steps", "2", "--pictures", "2", "--size", "64", "--guidance", "2", "--batch", "1"]
    return ["--concepts", str(world / "words"), "--prompts", str(world / "prompts.txt"), *fast]


BUNDLED = ["--clip", "bundled", "--dino", "none"]


def test_draw_then_measure_then_go_on_where_it_stopped(run, world, drawing, capsys):
    figures = world / "figures.json"
    assert run(*drawing, *BUNDLED, "--json", str(figures)) == 0
    out = world / "out"
    report = json.loads(figures.read_text())
    assert report == json.loads((out / "report.json").read_text())
    assert list(report["measures"]) == ["clip_t", "clip_i"]
    assert set(report["subjects"]) == set(SUBJECTS)
    assert report["protocol"]["pictures"] == 8
    assert "CLIP-T" in capsys.readouterr().out
    text = (out / "report.md").read_text()
    for name in SUBJECTS:
        assert f"sheets/{name}.png" in text
        assert Image.open(out / "sheets" / f"{name}.png").width > 2 * 128

    files = sorted((out / "pictures").rglob("*.png"))
    assert len(files) == 8
    before = {file: file.read_bytes() for file in files}
    assert len(set(before.values())) == 8, "every picture has noise of its own"
    lost = files[5]
    lost.unlink()
    cells = {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("*.json")}
    assert len(cells) == 4
    assert run(*drawing, *BUNDLED, "--json", str(figures)) == 0
    assert lost.read_bytes() == before[lost], "the same picture is drawn again, alone as in its batch"
    assert json.loads(figures.read_text()) == report
    assert {file: file.stat().st_mtime_ns for file in cells} == cells, "nothing is measured twice"

    more = [option if option != "2" or drawing[i - 1] != "--pictures" else "3" for i, option in enumerate(drawing)]
    assert run(*more, *BUNDLED) == 0
    assert all(file.read_bytes() == data for file, data in before.items())
    assert len(list((out / "pictures").rglob("*.png"))) == 12


def test_pictures_of_other_settings_are_not_mixed(run, world, drawing, capsys):
    only = ["--subjects", "goblet"]
    assert run(*drawing, *BUNDLED, *only) == 0
    for change in (["--seed", "1"], ["--class-word"], ["--eta", "0"]):
        assert run(*drawing, *BUNDLED, *only, *change) == 1
        assert "drawn with another model, concept or settings" in capsys.readouterr().err
    (world / "prompts.txt").write_text("a {} on lava\na {} at night\n")
    pictures = ["--generated", str(world / "out" / "pictures")]
    assert run(*pictures, "--prompts", str(world / "prompts.txt"), *BUNDLED, *only) == 1
    assert "drawn for other prompts" in capsys.readouterr().err


def test_existing_folders_with_masks_and_the_papers_encoders(tmp_path, encoders):
    rng = np.random.default_rng(0)
    folders = beside("dataset_folders").make_dataset(
        tmp_path, lambda seed, h=40, w=40: rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    )
    arguments = ["evaluate", str(folders / "dataset"), "--generated", str(folders / "generated"), "--masks"]
    arguments += [str(folders / "masks"), "--encoders", str(encoders), "--fill", "0.5", "--skip-categories", "style"]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["measures"]) == ["clip_t", "clip_i", "clip_i_fg", "dino", "dino_fg"]
    assert report["protocol"]["background_fill"] == 0.5
    assert report["protocol"]["similarity_without"] == ["style"]
    assert report["protocol"]["clip"] == "openai/clip-vit-base-patch32"
    assert "similarity leaves out the prompts about style" in (tmp_path / "out" / "report.md").read_text()


def test_what_is_missing_is_said_before_anything_is_drawn(run, world, drawing, capsys, monkeypatch):
    monkeypatch.chdir(world)
    assert run(*drawing) == 1
    assert "nothing is downloaded" in capsys.readouterr().err
    (world / "words" / "castle.safetensors").unlink()
    assert run(*drawing, *BUNDLED) == 1
    assert "castle.safetensors" in capsys.readouterr().err
    one = drawing.copy()
    one[1] = str(world / "words" / "goblet.safetensors")
    assert run(*one, *BUNDLED) == 1
    assert "one concept for 2 subjects" in capsys.readouterr().err
    assert run(*one, *BUNDLED, "--subjects", "goblet", "--size", "100") == 1
    assert "a multiple of 64" in capsys.readouterr().err
    assert run(*BUNDLED, "--prompts", str(world / "prompts.txt")) == 1
    assert "no picture in" in capsys.readouterr().err
    assert not list(world.rglob("out/pictures/**/*.png"))
