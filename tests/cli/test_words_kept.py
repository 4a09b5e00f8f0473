"""A trained word and its checkpoints are not replaced unless that is asked for, and a full disk loses neither."""

import errno
import json
import os
import tempfile

import pytest
import torch
from PIL import Image

from contextual_inversion.cli import train, training_bar
from contextual_inversion.cli.places import write_network
from contextual_inversion.cli.words import Waiting, place_for, waiting_in
from contextual_inversion.core.files import atomic_write_verified, load_concept
from contextual_inversion.core.training.run.checkpoint import checkpoints_in
from contextual_inversion.core.training.run.events import Step
from contextual_inversion.core.training.trainer import TrainingRun
from contextual_inversion.core.world.render import concept_images

QUICK = {
    "class_word": "cup",
    "steps": 3,
    "batch": 1,
    "core": False,
    "resolution": 64,
    "checkpoint_every": 1,
    "name": "x",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(concept_images("goblet", 1, seed=1)[0]):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """An output folder with a word in it."""
    out = tmp_path_factory.mktemp("trained")
    train.main(pictures, out=out, **QUICK)
    return out


@pytest.fixture
def out(trained, tmp_path):
    import shutil

    return shutil.copytree(trained, tmp_path / "out")


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.safetensors")}


def vectors(out, name):
    return load_concept(out / "embeddings" / f"{name}.safetensors").vectors["clip_l"]


def interrupted_after(monkeypatch, steps):
    following = TrainingRun.__next__

    def step(run):
        if run.learner is not None and run.learner.done == steps:
            raise KeyboardInterrupt
        return following(run)

    monkeypatch.setattr(TrainingRun, "__next__", step)


def test_a_second_word_of_the_name_stands_beside_the_first_with_checkpoints_of_its_own(pictures, out, capsys):
    before = contents(out)
    train.main(pictures, out=out, **{**QUICK, "seed": 1})
    after = contents(out)
    assert {path: after[path] for path in before} == before
    assert {str(path.parent) for path in after.keys() - before.keys()} == {"bundles", "checkpoints_2", "embeddings"}
    assert "the word is called x_2; --if-taken replace writes over it" in capsys.readouterr().out
    assert not torch.equal(vectors(out, "x"), vectors(out, "x_2"))
    bundle = load_concept(out / "bundles" / "x_2.safetensors")
    assert bundle.name == "x_2"


def test_replaced_or_refused_where_that_is_asked_for(pictures, out, monkeypatch):
    before = contents(out)
    train.main(pictures, out=out, **{**QUICK, "seed": 1}, if_taken="replace")
    after = contents(out)
    assert after.keys() == before.keys()
    assert all(after[path] != before[path] for path in before)
    monkeypatch.setattr(train, "load_model", lambda *given: pytest.fail("the work began"))
    with pytest.raises(FileExistsError, match=r"x\.safetensors exists.*--if-taken"):
        train.main(pictures, out=out, **QUICK, if_taken="refuse")
    assert contents(out) == after


def test_what_waits_is_gone_on_with_and_not_what_has_ended(pictures, out, monkeypatch, tmp_path):
    train.main(pictures, out=tmp_path / "whole", **{**QUICK, "seed": 1})
    with monkeypatch.context() as patch:
        interrupted_after(patch, 2)
        with pytest.raises(KeyboardInterrupt, match="checkpoints_2"):
            train.main(pictures, out=out, **{**QUICK, "seed": 1})
    with pytest.raises(FileExistsError, match=r"step_000002.*of 3 steps, waits.*--resume"):
        train.main(pictures, out=out, **QUICK)
    before = contents(out)
    figures = train.main(pictures, out=out, **{**QUICK, "seed": 1}, resume=True)
    assert figures["embedding"].endswith("x_2.safetensors")
    assert torch.equal(vectors(out, "x_2"), vectors(tmp_path / "whole", "x"))
    assert {path: contents(out)[path] for path in before if path.stem == "x"} == {
        path: data for path, data in before.items() if path.stem == "x"
    }


def full(*given, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number", [1, 2])
def test_a_word_that_could_not_be_written_is_written_by_resume_without_a_step(pictures, tmp_path, monkeypatch, number):
    links, real = [0], os.link

    def link(*given):
        links[0] += 1
        return full() if links[0] == number else real(*given)

    replaced, real_replace = [0], os.replace

    def replace(source, target):
        replaced[0] += str(target).endswith("x.safetensors")
        return full() if replaced[0] == number else real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match=r"No space left on device; free some space.*nothing is lost.*--resume"):
            train.main(pictures, out=tmp_path, **QUICK)
    assert not list(tmp_path.glob("*/x.safetensors")), "both or neither"
    steps = []
    with monkeypatch.context() as patch:
        follow = training_bar.as_line
        patch.setattr(training_bar, "as_line", lambda event: steps.append(event) or follow(event))
        train.main(pictures, out=tmp_path, **QUICK, resume=True, events=tmp_path / "events.jsonl")
    assert not [event for event in steps if isinstance(event, Step)]
    assert len(list(tmp_path.glob("*/x.safetensors"))) == 2


def test_pictures_and_lines_beside_the_work_do_not_end_it(pictures, tmp_path, monkeypatch, capsys):
    lines = tmp_path / "events.jsonl"
    calls = [0]

    def line(event):
        calls[0] += 1
        return full() if calls[0] == 2 else {"event": type(event).__name__}

    monkeypatch.setattr(training_bar, "write_preview", full)
    monkeypatch.setattr(training_bar, "as_line", line)
    figures = train.main(pictures, out=tmp_path / "out", **QUICK, preview_every=2, events=lines)
    assert figures["step"] == QUICK["steps"]
    said = capsys.readouterr().err
    assert "no preview, the work goes on: [Errno 28] No space left" in said
    assert "no line of --events, the work goes on" in said
    assert [json.loads(text)["event"] for text in lines.read_text().splitlines()][-1] == "Finished"


def test_a_place_for_checkpoints_is_tried_before_the_first_step(pictures, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(NotADirectoryError, match=r"a file stands where a folder is needed.*checkpoints"):
        train.main(pictures, out=tmp_path, **QUICK)


def test_what_waits_is_read_from_the_newest_that_is_whole(out):
    newest, before = checkpoints_in(out / "checkpoints")
    assert waiting_in(out / "checkpoints") == Waiting("x", 3, newest)
    newest.write_bytes(b"")
    assert waiting_in(out / "checkpoints") == Waiting("x", 3, before)
    before.unlink()
    assert waiting_in(out / "checkpoints") is None
    assert waiting_in(out / "nowhere") is None


def test_every_case_of_a_place(out, tmp_path):
    assert place_for(tmp_path / "new", "x", "number", resume=False) == ("x", tmp_path / "new" / "checkpoints")
    assert place_for(out, "x", "number", resume=False) == ("x_2", out / "checkpoints_2")
    assert place_for(out, "y", "number", resume=False) == ("y", out / "checkpoints_2")
    assert place_for(out, "y", "refuse", resume=False) == ("y", out / "checkpoints_2")
    assert place_for(out, "x", "replace", resume=False) == ("x", out / "checkpoints")
    assert place_for(out, "y", "replace", resume=False) == ("y", out / "checkpoints_2")
    assert place_for(out, "x", "refuse", resume=True) == ("x", out / "checkpoints")
    assert place_for(out, "y", "number", resume=True) == ("y", out / "checkpoints")


def test_a_network_whose_disk_takes_no_file_goes_where_one_is_taken(tmp_path, monkeypatch, capsys):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def save(network, folder, name, *, dtype, if_exists):
        if folder == tmp_path / "full":
            full()
        return atomic_write_verified(folder / f"{name}.safetensors", network, if_exists=if_exists)

    figures = write_network(save, b"psi", tmp_path / "full" / "psi.safetensors", "psi", half=True, overwrite=False)
    assert figures["file"] == str(tmp_path / "temporary" / "psi.safetensors")
    assert "No space left on device; so it is in" in capsys.readouterr().err
    for name in ("psi", "psi_2"):  # taken while it trained
        figures = write_network(save, b"psi", tmp_path / "psi.safetensors", "psi", half=True, overwrite=False)
        assert figures["file"] == str(tmp_path / f"{name}.safetensors")
