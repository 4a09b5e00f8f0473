"""What people give a command by mistake: one line before the work, and nothing that was there is lost."""

import json
import math
import signal

import pytest
import torch
from PIL import Image

from contextual_inversion.cli import evaluate, optimize, prompts, train
from contextual_inversion.cli.experiments import demo, transplant, world_report
from contextual_inversion.cli.experiments.tables import END, START, require_marks
from contextual_inversion.cli.loading import chosen_device
from contextual_inversion.cli.places import require_file, require_folder, write_picture
from contextual_inversion.cli.training_bar import class_picture_lines
from contextual_inversion.cli.training_pictures import training_files
from contextual_inversion.core.files import load_concept
from contextual_inversion.core.training.regularizers.prior import PriorPreservation
from contextual_inversion.core.training.trainer import TrainingRun
from contextual_inversion.core.world.render import concept_images

QUICK = {"class_word": "cup", "steps": 4, "batch": 1, "core": False, "resolution": 64, "checkpoint_every": 1}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "Meine Tassen"
    folder.mkdir()
    for number, picture in enumerate(concept_images("goblet", 2, seed=1)[0]):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def interrupted_after(monkeypatch, steps):
    """Ctrl-C while the step after so many is in work, heard also where a shell that runs this in the background has
    the signal ignored."""
    following, handler = TrainingRun.__next__, signal.default_int_handler

    def step(run):
        if run.learner is not None and run.learner.done == steps:
            before = signal.signal(signal.SIGINT, handler)
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, before)
        return following(run)

    monkeypatch.setattr(TrainingRun, "__next__", step)


def test_an_interrupted_training_is_gone_on_with_and_not_replaced(pictures, tmp_path, monkeypatch):
    whole = train.main(pictures, out=tmp_path / "whole", **QUICK)
    with monkeypatch.context() as patch:
        interrupted_after(patch, 2)
        with pytest.raises(KeyboardInterrupt, match=r"step_000002.*--resume"):
            train.main(pictures, out=tmp_path / "out", **QUICK)
    with pytest.raises(FileExistsError, match=r"step_000002.* of 4 steps, waits .* --resume"):
        train.main(pictures, out=tmp_path / "out", **QUICK)
    resumed = train.main(pictures, out=tmp_path / "out", resume=True, **QUICK)
    vectors = [load_concept(one["embedding"], widths={"clip_l": 128}).vectors["clip_l"] for one in (whole, resumed)]
    assert torch.equal(*vectors)
    again = train.main(pictures, out=tmp_path / "out", **{**QUICK, "steps": 2})
    assert again["step"] == 2, "a training that ended stands in nobody's way"


def test_an_interruption_before_the_first_step_promises_no_checkpoint(pictures, tmp_path, monkeypatch):
    def stopped(self, *given):
        raise KeyboardInterrupt

    monkeypatch.setattr(PriorPreservation, "prepare", stopped)
    with pytest.raises(KeyboardInterrupt) as raised:
        train.main(pictures, out=tmp_path / "out", method="dreambooth-lora", prior_weight=1.0, **QUICK)
    assert "--resume" not in str(raised.value)


def test_mlm_without_a_file_is_no_training_without_mlm(pictures, tmp_path):
    with pytest.raises(ValueError, match="--mlm needs"):
        train.main(pictures, out=tmp_path / "out", mlm=(), **QUICK)
    with pytest.raises(ValueError, match="batch >= 1"):
        train.main(pictures, out=tmp_path / "out", mlm=("bundled",), mlm_batch=0, **QUICK)


def test_a_folder_that_is_none_and_pictures_of_a_phone_are_named(pictures, tmp_path, capsys):
    with pytest.raises(NotADirectoryError, match="is no folder"):
        training_files(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        training_files(pictures / "0.png")
    (pictures / "IMG_1.HEIC").write_bytes(b"phone")
    assert [file.name for file in training_files(pictures)] == ["0.png", "1.png"]
    assert "IMG_1.HEIC" in capsys.readouterr().out


def test_drawing_class_pictures_is_told_at_each_tenth(capsys):
    progress = class_picture_lines()
    for done in range(0, 100, 4):
        progress(done, 100)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 10
    assert said[0].endswith("0 of 100")


def test_a_place_that_takes_no_file_is_refused_before_the_work(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_model", lambda *given: pytest.fail("the work began"))
    monkeypatch.setattr(optimize, "load_model", lambda *given: pytest.fail("the work began"))
    taken = pictures / "0.png"
    for begin in (
        lambda: train.main(pictures, out=taken, **QUICK),
        lambda: optimize.main([taken], prompt="a {}", out=taken),
        lambda: demo.main(out=taken),
        lambda: evaluate.main(tmp_path, out=taken),
        lambda: require_file(tmp_path),
        lambda: require_folder(taken / "inside"),
    ):
        with pytest.raises(OSError, match="--out"):
            begin()


def test_a_picture_on_a_full_disk_leaves_the_earlier_one(tmp_path, monkeypatch):
    file = write_picture(Image.new("RGB", (4, 4), "red"), tmp_path / "new" / "sheet.png")
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_picture(Image.new("RGB", (4, 4), "blue"), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_marks_are_missed_before_the_trials(tmp_path):
    document = tmp_path / "claims.md"
    document.write_text(f"{START.format('core')}\n{END.format('core')}\n")
    require_marks([document], ["core"])
    require_marks([], ["mlm"])
    with pytest.raises(ValueError, match="mlm"):
        require_marks([document], ["core", "mlm"])
    with pytest.raises(FileNotFoundError):
        require_marks([tmp_path / "none.md"], [])


def test_a_device_that_is_not_there_is_named():
    assert chosen_device("cpu") == torch.device("cpu")
    for name in ("nonsense", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ValueError, match=f"--device {name} cannot be used here"):
            chosen_device(name)


def test_numbers_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--n is at least 1"):
        world_report.main(n=0)
    with pytest.raises(ValueError, match="--steps"):
        world_report.main(steps=-1)
    with pytest.raises(ValueError, match="--seed"):
        demo.main(out=tmp_path, seed=-1)
    with pytest.raises(ValueError, match="at least one concept"):
        transplant.main(concepts=())
    with pytest.raises(ValueError, match="name the bundles"):
        optimize.main([], prompt="a {}", out=tmp_path)
    for wrong in ({"batch": 0}, {"pictures": 0}, {"fill": 3.0}, {"fill": math.nan}):
        with pytest.raises(ValueError, match="--fill"):
            evaluate.main(tmp_path, out=tmp_path, **wrong)


def test_one_caption_is_a_report_too(capsys):
    report = world_report.main(n=1, steps=3, sheet=None)
    assert report["steps"] == 3
    assert "second_object" not in report, "this caption asks for none"
    assert "–" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("second_object"))
    assert json.dumps(report["background"])


def test_a_language_model_that_is_not_there_is_not_a_matter_of_connections(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--llm .* nothing is downloaded"):
        prompts.main(out=tmp_path / "p.txt", llm=str(tmp_path / "nowhere"))
