"""Files of pictures for a pretraining: read as they look, and nothing that is none."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from tuning_parts import images, model, source

from contextual_inversion.core.training.one_picture import prepared as prepared_pictures
from contextual_inversion.core.training.one_picture.pictures import FolderPictures, ShardPictures, decoded

GREY = np.linspace(0, 255, 20 * 24).round().astype(np.uint8).reshape(20, 24)


def png(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def test_sixteen_bits_are_the_picture_that_eight_are():
    eight, sixteen = decoded(png(GREY), "eight"), decoded(png(GREY.astype(np.uint16) * 257), "sixteen")
    assert torch.equal(eight, torch.from_numpy(GREY).float().expand(3, -1, -1).permute(1, 2, 0) / 255)
    assert torch.equal(sixteen, eight)


def test_what_is_transparent_is_white():
    picture = np.dstack([GREY, GREY, GREY, np.where(GREY > 100, 255, 0).astype(np.uint8)])
    expected = np.where(GREY > 100, GREY, 255)[..., None].repeat(3, -1)
    assert torch.equal(decoded(png(picture), "cut out"), torch.from_numpy(expected).float() / 255)


@pytest.mark.parametrize("name", ["._a.png", ".trash/a.png", "a.txt"])
def test_hidden_files_and_others_are_no_pictures(tmp_path, name):
    """A Mac leaves such files on every foreign disk; a pretraining would stop at them after hours."""
    folder, shard = tmp_path / "pictures", tmp_path / "shard.tar"
    for path in (folder / "a.png", folder / "deep" / "b.PNG", folder / name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(GREY))
    with tarfile.open(shard, "w") as tar:
        tar.add(folder, "pictures")
    assert len(FolderPictures(folder)) == len(ShardPictures([shard])) == 2


def test_what_is_kept_of_the_pictures_has_an_end_and_changes_nothing(monkeypatch):
    """Twenty thousand pictures under a large CLIP are more than twenty gigabytes."""

    def prepared(most):
        monkeypatch.setattr(prepared_pictures, "CACHE_BYTES", most)
        return prepared_pictures.PreparedPictures(model(), images(), source(), 64, room=20_000)

    whole = prepared(2**30)
    latents, features = whole([0, 1, 2, 3])
    one = whole.bytes // 4
    short = prepared(2 * one)
    for _ in range(2):
        again, same = short([0, 1, 2, 3])
        assert torch.equal(again, latents)
        assert torch.equal(same.vectors, features.vectors)
        assert torch.equal(same.grid, features.grid)
    assert len(short.kept) == 2
    assert short.bytes == 2 * one
