"""Folders of pictures as people and other programs keep them, in the command `train`."""

import numpy as np
import pytest
import torch
from PIL import Image

from contextual_inversion.cli import train
from contextual_inversion.cli.training_pictures import training_files, usable_pictures
from contextual_inversion.core.files.pictures import BrokenPictureError
from contextual_inversion.core.training.preparation import latent_bank_of
from contextual_inversion.core.training.trainer import TrainingRun

QUICK = {"class_word": "cup", "steps": 2, "batch": 2, "core": False}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "dog6"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 300, 420, 3), dtype=np.uint8)
    for name, picture in zip(("a.jfif", "b.png", "c.png"), pixels, strict=True):
        Image.fromarray(picture).save(folder / name, format="JPEG" if name.endswith("jfif") else "PNG")
    return folder


@pytest.fixture
def bank(monkeypatch):
    """The latent banks of the trainings that are run, and how large the pictures were that came to them."""
    seen = []

    def noted(model, settings, images, masks):
        found = latent_bank_of(model, settings, images, masks)
        seen.append((found, [tuple(image.shape) for image in images], settings))
        return found

    monkeypatch.setattr("contextual_inversion.core.training.trainer.latent_bank_of", noted)
    return seen


def test_photographs_are_trained_on_at_the_size_of_the_bundled_model_which_is_called_a_toy(
    photos, tmp_path, bank, capsys
):
    train.main(photos, out=tmp_path / "out", **QUICK)
    ((found, shapes, _),) = bank
    assert tuple(found.latents.shape[-2:]) == (16, 16)
    assert shapes == [(128, 179, 3)] * 3, "held at the size of the training, not at the camera's"
    assert found.weights is None
    assert "is a toy" in capsys.readouterr().out


def test_masks_and_captions_beside_pictures_are_used_and_what_is_not_is_named(photos, tmp_path, bank, capsys):
    mask = np.zeros((300, 420), dtype=np.uint8)
    mask[:, 150:250] = 255
    Image.fromarray(mask).save(photos / "b-masklabel.png")
    (photos / "a.txt").write_text("a red cup\nthe sea\nmy {} at sea")
    (photos / "b.txt").write_text("something else")
    (photos / "c.txt").write_text("a cup " + "and more " * 80)
    (photos / "old.psd").write_bytes(b"")
    result = train.main(photos, out=tmp_path / "out", **QUICK)
    ((found, _, settings),) = bank
    assert result["pictures"] == ["a.jfif", "b.png", "c.png"]
    assert list(result["left_out"]) == ["old.psd"]
    assert settings.captions == (("a red {}", "my {} at sea"), (), ())
    assert bool((found.weights[[0, 2]] == 1).all())
    assert 0.3 < float(found.weights[1].mean()) < 0.9
    said = capsys.readouterr().out
    for words in (
        "old.psd",
        "b.txt (holds neither",
        "do not fit",
        "masks beside the pictures: 1 of 3",
        "1 of 3 pictures",
    ):
        assert words in said
    train.main(photos, out=tmp_path / "two", captions=False, **QUICK)
    assert bank[1][2].captions == ()


def test_each_picture_is_trained_on_its_own_prompts(photos, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (photos / f"{name}.txt").write_text(f"{name} cup")
    seen = set()
    finish = TrainingRun._finish

    def noting(run):
        instances = run.prepared.objective.instances
        for step in range(20):
            batch, draws = instances(step), instances.draw(step)
            assert batch.templates == draws.templates
            seen.update(zip(draws.rows.tolist(), (run.settings.prompts[one] for one in draws.templates), strict=True))
        return finish(run)

    monkeypatch.setattr(TrainingRun, "_finish", noting)
    train.main(photos, out=tmp_path / "out", **QUICK)
    assert seen == {(0, "a {}"), (1, "b {}"), (2, "a photo of a {}")}


@pytest.mark.parametrize(
    ("size", "problem"),
    [((8, 2000), "shows nothing; it needs 16"), ((420, 299), r"mask b-mask\.png is 420 x 300 .* b\.png 420 x 299")],
)
def test_a_picture_that_cannot_be_used_is_named_before_the_work(photos, tmp_path, monkeypatch, size, problem):
    Image.new("RGB", size).save(photos / "b.png")
    if size[0] == 420:
        Image.new("L", (420, 300), 255).save(photos / "b-mask.png")
    monkeypatch.setattr(train, "load_model", lambda *given: pytest.fail("the work began"))
    with pytest.raises(BrokenPictureError, match=rf"{problem}.*--skip-broken"):
        train.main(photos, out=tmp_path / "out", **QUICK)
    usable = usable_pictures(training_files(photos), skip_broken=True)
    assert [file.name for file in usable.files] == ["a.jfif", "c.png"]


def test_a_strip_asks_for_no_more_than_eight_squares(photos):
    Image.new("RGB", (20000, 16)).save(photos / "b.png")
    images, masks = usable_pictures(training_files(photos)).read(128)
    assert [tuple(image.shape) for image in images] == [(128, 179, 3), (128, 1024, 3), (128, 179, 3)]
    assert masks is None
    assert all(image.dtype == torch.float32 for image in images)


def test_a_folder_without_a_picture_says_what_is_there(tmp_path):
    (tmp_path / "IMG.HEIC").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no pictures .* there are IMG\.HEIC"):
        training_files(tmp_path)
