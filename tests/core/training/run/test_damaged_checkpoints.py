"""Whatever a disk does to a checkpoint is found, its file is named, and the one before it is gone on from."""

import dataclasses
import errno
import json
import logging
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from stub_model import StubModel, pictures
from training_child import core, settings

from contextual_inversion.core.training.run import checkpoint as checkpoints
from contextual_inversion.core.training.run.checkpoint import (
    DamagedCheckpointError,
    checkpoint_path,
    checkpoints_in,
    load_checkpoint,
    save_checkpoint,
)
from contextual_inversion.core.training.run.events import CheckpointFailed, CheckpointSaved, Finished, Step
from contextual_inversion.core.training.trainer import train


def four_steps(folder, every=1):
    return dataclasses.replace(settings(folder), steps=4, checkpoint_every=every)


def run(folder, resume=None, every=1):
    chosen = four_steps(folder, every)
    with train(StubModel(), pictures(), chosen, regularizers=[core()], resume=resume) as training:
        return list(training)


def cut_off(folder, at=3):
    with train(
        StubModel(),
        pictures(),
        dataclasses.replace(settings(folder), steps=4, checkpoint_every=1),
        regularizers=[core()],
    ) as training:
        for event in training:
            if isinstance(event, CheckpointSaved) and event.step == at:
                break


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("whole"))[-1]


def flipped(path, where):
    """One bit of the file changed at a share of its data."""
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + int(where * (len(data) - start - 1))] ^= 1
    path.write_bytes(data)


def restated(path, change):
    """The checkpoint with another state, facts or losses, and the right checksum."""
    found = load_checkpoint(path)
    tree = {"state": dict(found.state), "facts": dict(found.facts), "losses": dict(found.losses)}
    change(tree)
    step = int(path.stem.removeprefix("step_"))
    kept = {other: other.read_bytes() for other in checkpoints_in(path.parent)}
    save_checkpoint(path.parent, step, dataclasses.replace(found, **tree))
    for other, data in kept.items():
        if other != path:
            other.write_bytes(data)


def reheaded(path, change):
    """The same tensors under other metadata."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    change(header)
    save_file(load_file(path), path, header)


def without(part, key):
    return lambda tree: tree[part].pop(key)


def with_value(part, key, value):
    return lambda tree: tree[part].update({key: value})


def broadcast(tree):
    tree["state"]["vectors"] = {name: value[:1, :1] for name, value in tree["state"]["vectors"].items()}


def narrow_moments(tree):
    tree["state"]["optimizer"] = {"0": {**tree["state"]["optimizer"]["0"], "exp_avg": torch.zeros(1, 1)}}


def one_step_less(header):
    assert '"value": 3' in header[checkpoints.KEY]
    header[checkpoints.KEY] = header[checkpoints.KEY].replace('"value": 3', '"value": 2')


STATES = {
    **{f"no {key}": without("state", key) for key in ("vectors", "weights", "average", "norms", "optimizer", "done")},
    "no seconds": without("facts", "seconds"),
    "seconds in words": with_value("facts", "seconds", "long"),
    "seconds of nobody": with_value("facts", "seconds", None),
    "a step of nobody": with_value("state", "done", None),
    "a step behind the end": with_value("state", "done", 10**6),
    "a step before the beginning": with_value("state", "done", -1),
    "vectors that are none": with_value("state", "vectors", {"clip_l": 3.0}),
    "vectors that would be stretched": broadcast,
    "moments that would be stretched": narrow_moments,
    "moments of nobody": with_value("state", "optimizer", {"99": {"step": torch.tensor(1.0)}}),
    "moments of no number": with_value("state", "optimizer", {"first": {}}),
    "losses that are none": with_value("losses", "diffusion", "low"),
}
FILES = {
    **{f"a bit at {where}": lambda path, where=where: flipped(path, where) for where in (0.0, 0.3, 0.6, 1.0)},
    "half of it": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "nothing": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no checkpoint": lambda path: save_file({"x": torch.zeros(1)}, path),
    "header of a list": lambda path: reheaded(path, lambda header: header.update(contextual_inversion="[]")),
    "header of no JSON": lambda path: reheaded(path, lambda header: header.update(contextual_inversion="{")),
    "another text, the same tensors": lambda path: reheaded(
        path,
        lambda header: header.update(
            contextual_inversion=header["contextual_inversion"].replace('"value": 3', '"value": 2')
        ),
    ),
    **{name: lambda path, change=change: restated(path, change) for name, change in STATES.items()},
}


@pytest.mark.parametrize("kind", FILES)
def test_the_one_before_it_is_gone_on_from_to_the_same_bits(tmp_path, whole, caplog, kind):
    cut_off(tmp_path)
    newest, before = checkpoints_in(tmp_path)
    FILES[kind](newest)
    with caplog.at_level(logging.WARNING):
        events = run(tmp_path, resume=tmp_path)
    assert events[0].first_step == 2, before
    assert newest.name in caplog.text
    assert torch.equal(events[-1].concept.vectors["clip_l"], whole.concept.vectors["clip_l"])


@pytest.mark.parametrize("kind", FILES)
def test_where_there_is_no_other_the_file_is_named(tmp_path, kind):
    cut_off(tmp_path)
    newest, before = checkpoints_in(tmp_path)
    before.unlink()
    FILES[kind](newest)
    with pytest.raises(DamagedCheckpointError, match=newest.name) as raised:
        run(tmp_path, resume=tmp_path)
    assert len(str(raised.value)) < 400


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_and_is_taken(tmp_path, whole):
    cut_off(tmp_path)
    reheaded(checkpoints_in(tmp_path)[0], lambda header: header.pop(checkpoints.CHECKSUM))
    events = run(tmp_path, resume=tmp_path)
    assert events[0].first_step == 3
    assert torch.equal(events[-1].concept.vectors["clip_l"], whole.concept.vectors["clip_l"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("every", [1, 99])
def test_a_checkpoint_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch, whole, call, number, every):
    def fail(*given):
        raise OSError(number, os.strerror(number))

    # The place is fine before the first step, so that the training begins.
    monkeypatch.setattr(checkpoints, "require_writable", lambda *given: None)
    monkeypatch.setattr(os, call, fail)
    events = run(tmp_path, every=every)
    failures = [event for event in events if isinstance(event, CheckpointFailed)]
    assert [event.step for event in failures] == ([1, 2, 3, 4] if every == 1 else [4])
    assert all(os.strerror(number) in event.reason and "step_" in event.reason for event in failures)
    assert isinstance(events[-1], Finished)
    assert torch.equal(events[-1].concept.vectors["clip_l"], whole.concept.vectors["clip_l"])
    assert not list(tmp_path.iterdir())


def test_whoever_stops_hears_of_stopping_and_not_of_the_disk(tmp_path, monkeypatch, caplog):
    def fail(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    training = train(StubModel(), pictures(), settings(tmp_path), regularizers=[core()])
    while not isinstance(next(training), Step):
        pass
    monkeypatch.setattr(os, "fsync", fail)
    with caplog.at_level(logging.WARNING):
        training.close()
    assert "step 1" in caplog.text
    assert "No space left" in caplog.text


def test_a_place_that_takes_no_file_is_refused_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        run(tmp_path / "file")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match=r"are needed.*are free.*free some space"):
        run(tmp_path / "small")


def test_a_training_that_is_done_needs_no_room(tmp_path, monkeypatch, whole):
    run(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 0}))
    events = run(tmp_path, resume=tmp_path)
    assert [type(event).__name__ for event in events] == ["Started", "Finished"]
    assert torch.equal(events[-1].concept.vectors["clip_l"], whole.concept.vectors["clip_l"])


def test_every_part_of_the_text_is_in_the_checksum(tmp_path):
    cut_off(tmp_path)
    path = checkpoint_path(tmp_path, 3)
    text = json.dumps({"format": checkpoints.FORMAT})
    tensors = load_file(path)
    found = {checkpoints.checksum(text, tensors), checkpoints.checksum(text + " ", tensors)}
    for name, value in tensors.items():
        if value.numel():
            found.add(checkpoints.checksum(text, {**tensors, name: value.flatten()}) if value.ndim != 1 else name)
            found.add(checkpoints.checksum(text, {key: one for key, one in tensors.items() if key != name}))
    assert len(found) == 2 + 2 * sum(1 for value in tensors.values() if value.numel())
