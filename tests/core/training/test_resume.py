"""Stopping keeps the work, and a resumed training ends in the same bits as one that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stub_model import StubModel, pictures
from training_child import TINY_METHODS, core, settings

from contextual_inversion.core.training.run.checkpoint import (
    Checkpoint,
    CheckpointMismatchError,
    checkpoint_path,
    checkpoints_in,
    load_checkpoint,
    require_same_run,
)
from contextual_inversion.core.training.run.events import CheckpointSaved, Finished, Step
from contextual_inversion.core.training.trainer import train

CHILD = Path(__file__).with_name("training_child.py")
OTHER_METHODS = [name for name in TINY_METHODS if name != "ti"]


def killed(*trainings):
    """Of each (folder, what, number, method): the process's exit status, and how many checkpoints it left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), json.dumps(trainings, default=str)]
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def to_the_end(folder, resume=None, method="ti"):
    torch.set_num_threads(1)
    with train(StubModel(), pictures(), settings(folder, method), regularizers=[core()], resume=resume) as run:
        *_, last = run
    return last


def same(a, b):
    assert set(a.concept.vectors) == set(b.concept.vectors)
    for kind in ("vectors", "layer_vectors", "lora"):
        ours, theirs = getattr(a.concept, kind) or {}, getattr(b.concept, kind) or {}
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert set(a.losses) == set(b.losses)
    assert all(torch.equal(a.losses[name], b.losses[name]) for name in a.losses)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return to_the_end(tmp_path_factory.mktemp("whole"))


def test_kill_minus_nine_anywhere_then_resume_gives_the_same_bits(tmp_path, uninterrupted):
    # In the middle of a step's UNet passes (three a step), and of writing a checkpoint, in one training after another.
    places = (("predict", 8), ("predict", 11), ("replace", 3))
    for status, checkpoints in killed(*((tmp_path, what, number, "ti") for what, number in places)):
        assert status == -signal.SIGKILL
        assert checkpoints
    last = to_the_end(tmp_path, resume=tmp_path)
    assert last.step == 12
    same(last, uninterrupted)


@pytest.fixture(scope="module")
def killed_of_every_method(tmp_path_factory):
    folders = {method: tmp_path_factory.mktemp("killed") for method in OTHER_METHODS}
    found = killed(*((folder, "predict", 17, method) for method, folder in folders.items()))
    return {method: (folders[method], *one) for method, one in zip(folders, found, strict=True)}


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_every_method_survives_kill_minus_nine(tmp_path, killed_of_every_method, method):
    folder, status, checkpoints = killed_of_every_method[method]
    assert status == -signal.SIGKILL
    assert checkpoints
    same(to_the_end(folder, resume=folder, method=method), to_the_end(tmp_path, method=method))


@pytest.mark.parametrize("steps", [1, 5, 7])
@pytest.mark.parametrize("how", ["stop", "close", "exception", "interrupt inside a step"])
def test_however_it_ends_the_work_is_kept(tmp_path, uninterrupted, how, steps):
    model = StubModel()
    try:
        with train(model, pictures(), settings(tmp_path), regularizers=[core()]) as run:
            for event in run:
                if not isinstance(event, Step) or event.step < steps:
                    continue
                if how == "stop":
                    run.stop("enough")
                elif how == "close":
                    break
                elif how == "exception":
                    raise Cancelled
                elif how == "interrupt inside a step":
                    run.learner.optimizer.register_step_post_hook(interrupt)
            if how == "stop":
                assert isinstance(event, Finished)
                assert (event.step, event.stopped) == (steps, "enough")
                assert len(event.losses["diffusion"]) == steps
    except (Cancelled, KeyboardInterrupt):
        assert how in ("exception", "interrupt inside a step")
    assert model.sessions == 0
    assert all(value.requires_grad for value in model.parameters())
    assert load_checkpoint(tmp_path).state["done"] == steps
    same(to_the_end(tmp_path, resume=tmp_path), uninterrupted)


class Cancelled(Exception):
    pass


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted):
    with train(StubModel(), pictures(), settings(tmp_path), regularizers=[core()]) as run:
        for event in run:
            if isinstance(event, CheckpointSaved) and event.step == 4:
                break
    newest = checkpoints_in(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert load_checkpoint(tmp_path).state["done"] == 2
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(newest)
    same(to_the_end(tmp_path, resume=tmp_path), uninterrupted)


def test_a_checkpoint_of_another_training_is_refused_by_naming_the_differences(tmp_path, run):
    run(StubModel(), checkpoint_dir=tmp_path, steps=2)
    with pytest.raises(CheckpointMismatchError) as refused:
        run(StubModel(seed=1), images=pictures(seed=6), resume=tmp_path, steps=2, learning_rate=0.01)
    message = str(refused.value)
    for item in ("learning_rate (checkpoint 0.005, now 0.01)", "model (", "pictures (", "text_encoders ("):
        assert item in message
    assert "seed" not in message


@pytest.mark.parametrize(("here", "there"), [({"seed": 1}, {}), ({}, {"seed": 1}), ({"seed": None}, {"seed": 1})])
def test_what_one_of_both_trainings_lacks_is_a_difference(here, there):
    """As a setting that a later version adds or drops."""
    with pytest.raises(CheckpointMismatchError, match="seed"):
        require_same_run(here, Checkpoint(there, {}, {}, {}))


def test_reporting_settings_may_change_on_resume(tmp_path, run):
    whole = run(StubModel(), steps=4)
    with pytest.raises(FileNotFoundError):
        run(StubModel(), steps=4, resume=tmp_path)
    run(StubModel(), steps=4, checkpoint_dir=tmp_path, checkpoint_every=3, log_every=1)
    (tmp_path / "step_000004.safetensors").unlink()
    same(run(StubModel(), steps=4, resume=tmp_path, preview_every=2, preview_steps=2, log_every=4), whole)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "NAdam", "RMSprop", "Adafactor", "Rprop"])
def test_every_optimizer_resumes_to_the_same_bits(tmp_path, run, optimizer):
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    keywords = {"optimizer": optimizer, "optimizer_options": options, "steps": 5}
    whole = run(StubModel(), **keywords, checkpoint_dir=tmp_path, checkpoint_every=3)
    (tmp_path / "step_000005.safetensors").unlink()
    same(run(StubModel(), **keywords, resume=tmp_path), whole)


def test_a_run_that_begins_anew_is_not_lost_among_an_earlier_ones_checkpoints(tmp_path, run, uninterrupted):
    """`train` writes to the same folder by default: what waits there is of other pictures and of later steps."""
    run(StubModel(), images=pictures(seed=6), steps=20, checkpoint_dir=tmp_path, checkpoint_every=5)
    with train(StubModel(), pictures(), settings(tmp_path), regularizers=[core()]) as stopped:
        for event in stopped:
            if isinstance(event, Step) and event.step == 5:
                break
    assert load_checkpoint(tmp_path).state["done"] == 5
    same(to_the_end(tmp_path, resume=tmp_path), uninterrupted)


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits(tmp_path):
    for step in (999_950, 1_000_000, 50):
        checkpoint_path(tmp_path, step).touch()
    (tmp_path / "step_best.safetensors").touch()  # somebody's copy
    assert [path.stem for path in checkpoints_in(tmp_path)] == ["step_1000000", "step_999950", "step_000050"]
