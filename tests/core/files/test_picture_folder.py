"""Every file of a folder of training pictures is used, or named."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from contextual_inversion.core.files.picture_folder import read_folder
from contextual_inversion.core.files.pictures import mask_of, picture_files, read_picture
from contextual_inversion.core.files.side_files import ENDINGS
from contextual_inversion.core.training.one_picture.pictures import FolderPictures


def fill(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")


def test_every_file_is_used_or_named(tmp_path):
    fill(tmp_path, "a.jfif", "b.JPG", "c.png", "d.png")  # pictures
    fill(tmp_path, "a-masklabel.png", "b_mask.png", "c-mask.png", "c.mask.webp")
    fill(tmp_path, "a.txt", "b.caption", "c.png.txt", "c.txt", "other.txt")
    fill(tmp_path, "face_mask.png", "d-condlabel.png", "phone.HEIC", "latents.npz", ".hidden.png", "Thumbs.db")
    (tmp_path / "more").mkdir()
    found = read_folder(tmp_path)
    assert [file.name for file in found] == ["a.jfif", "b.JPG", "c.png", "d.png", "face_mask.png"]
    masks, captions = (
        {picture.name: file.name for picture, file in part.items()} for part in (found.masks, found.captions)
    )
    assert masks == {"a.jfif": "a-masklabel.png", "b.JPG": "b_mask.png", "c.png": "c-mask.png"}
    assert captions == {"a.jfif": "a.txt", "b.JPG": "b.caption", "c.png": "c.png.txt"}
    assert set(found.left_out) == {
        "c.mask.webp", "c.txt", "other.txt", "d-condlabel.png", "phone.HEIC", "latents.npz", "more"
    }  # fmt: skip
    assert "another such file" in found.left_out["c.txt"]
    assert "convert it" in found.left_out["phone.HEIC"]
    used = {file.name for part in (found.masks, found.captions) for file in part.values()}
    visible = {file.name for file in tmp_path.iterdir()} - {".hidden.png", "Thumbs.db"}
    assert {file.name for file in found} | used | set(found.left_out) == visible


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_list_says_everywhere_what_a_picture_is(ending, tmp_path):
    kind = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}.get(ending, "JPEG")
    file = tmp_path / f"a{ending.upper()}"
    Image.new("RGB", (20, 20), "red").save(file, format=kind)
    assert list(read_folder(tmp_path)) == picture_files(tmp_path) == list(FolderPictures(tmp_path).files) == [file]
    assert read_picture(file).shape == (20, 20, 3)


def test_masks_beside_pictures_are_pictures_nowhere(tmp_path):
    fill(tmp_path, "00.jpg", "00-masklabel.png", "01.jpg")
    names = ["00.jpg", "01.jpg"]
    assert [file.name for file in picture_files(tmp_path)] == names
    assert [file.name for file in FolderPictures(tmp_path).files] == names
    assert mask_of(tmp_path / "00.jpg", tmp_path).name == "00-masklabel.png", "and not the picture itself"


def png(depth, colours, pixels, clear):
    """A PNG of one row: `pixels` of so many `colours`, `depth` bits each, of which `clear` is transparent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    numbers = [value for pixel in pixels for value in pixel]
    whole = sum(value << (depth * (len(numbers) - 1 - place)) for place, value in enumerate(numbers))
    row = whole.to_bytes(len(numbers) * depth // 8, "big")
    header = struct.pack(">IIBBBBB", len(pixels), 1, depth, 0 if colours == 1 else 2, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(f">{colours}H", *clear), b"IDAT": zlib.compress(b"\0" + row)}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items()) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "colours"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_transparent_value_of_a_png_lies_on_white_whatever_its_depth(depth, colours, tmp_path):
    most = 2**depth - 1
    levels = [0, most // 3, 0, most // 3 if depth > 1 else 1] * 2
    pixels = [[level] * colours for level in levels]
    (tmp_path / "a.png").write_bytes(png(depth, colours, pixels, pixels[0]))
    found = read_picture(tmp_path / "a.png")[0, :, 0]
    own = [255 if level == 0 else round(level * 255 / most) for level in levels]
    np.testing.assert_array_equal(found, own)
