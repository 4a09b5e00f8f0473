"""`pretrain-contextualizer` finds out before the training what would otherwise lose it at its end."""

from pathlib import Path

import pytest

from contextual_inversion.cli import pretrain_contextualizer as command
from contextual_inversion.core.files.contextualizer import load_contextualizer

SHORT = {"steps": 2, "batch": 2, "vocabulary_captions": 50, "held_out": 10, "device": "cpu"}


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(command, "load_text_encoder", pytest.fail)


@pytest.mark.parametrize("name", ["my contextualizer", "contextualizer.pt", "con", "taken", "taken.safetensors"])
def test_a_name_that_cannot_be_written_is_refused_before_the_training(tmp_path: Path, no_training, name):
    (tmp_path / "taken.safetensors").touch()
    with pytest.raises((ValueError, FileExistsError)):
        command.main(out=tmp_path / name, **SHORT)


def test_beginning_anew_does_not_replace_the_checkpoints_that_wait(tmp_path: Path, no_training):
    (tmp_path / "step_000200.safetensors").touch()
    with pytest.raises(FileExistsError, match="add --resume"):
        command.main(out=tmp_path / "new", checkpoints=tmp_path, **SHORT)


def test_a_file_without_an_ending_is_written_with_it_and_replaced_if_allowed(tmp_path: Path):
    first = command.main(out=tmp_path / "mine", **SHORT)
    again = command.main(out=tmp_path / "mine", overwrite=True, seed=1, **SHORT)
    assert first["file"] == again["file"] == str(tmp_path / "mine.safetensors")
    assert load_contextualizer(tmp_path / "mine.safetensors").provenance["settings"]["seed"] == 1
