"""Memory follows the training's resolution: what is shrunk, to the bits of the whole picture resized."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stub_model import StubModel

from contextual_inversion.core.files import shrinking
from contextual_inversion.core.files.pictures import read_as_tensor, read_picture
from contextual_inversion.core.files.shrinking import LONGEST, SMALLEST, require_enough, resized
from contextual_inversion.core.training.pictures import encode_pictures


def whole(picture, side):
    """All colours at once in float32, as pictures were resized before: (H, W, 3) in [0, 1] -> (3, h, w)."""
    planes = picture.permute(2, 0, 1).clone()
    scale = side / min(planes.shape[1:])
    target = tuple(max(side, round(length * scale)) for length in planes.shape[1:])
    if target == tuple(planes.shape[1:]):
        return planes
    return F.interpolate(planes[None], size=target, mode="bilinear", antialias=True, align_corners=False)[0]


def drawn(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(90, 70), (64, 64), (64, 65), (200, 90), (40, 300), (33, 50)])
@pytest.mark.parametrize("side", [32, 64])
def test_a_picture_of_bytes_is_resized_to_the_bits_of_the_whole_one_in_floats(shape, side):
    pixels = torch.from_numpy(drawn(*shape))
    expected = whole(pixels.float() / 255, side)
    for picture in (pixels, pixels.float() / 255):
        assert torch.equal(resized(picture, side), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_of_a_strip_the_middle_is_taken_and_no_photograph_is_cut(axis):
    strip = torch.from_numpy(drawn(20, 20 * LONGEST * 3)).movedim(0, axis)
    middle = strip.narrow(1 - axis, 20 * LONGEST, 20 * LONGEST)
    assert torch.equal(resized(strip, 64), resized(middle, 64))
    assert max(resized(middle, 64).shape[1:]) == 64 * LONGEST
    panorama = torch.from_numpy(drawn(30, 30 * LONGEST))
    assert torch.equal(resized(panorama, 64), whole(panorama.float() / 255, 64))


@pytest.mark.parametrize(("height", "width"), [(1, 3000), (8, 20000), (SMALLEST - 1, 40)])
def test_a_picture_that_shows_nothing_is_refused(height, width):
    with pytest.raises(ValueError, match=rf"picture 2 of {width} x {height} pixels shows nothing; it needs 16 a side"):
        encode([torch.rand(64, 64, 3), torch.rand(height, width, 3)])
    require_enough(SMALLEST, 40, "this")


def encode(images, **options):
    settings = {"masks": None, "resolution": 64, "augmentation": None, "seed": 0}
    return encode_pictures(StubModel(), images, **{**settings, **options})


def test_what_was_shrunk_on_reading_trains_the_same(tmp_path):
    """A folder's pictures are resized when they are read, a node's when they are encoded."""
    Image.fromarray(drawn(190, 260)).save(tmp_path / "photo.png")
    mask = torch.zeros(190, 260)
    mask[40:150, 60:200] = 1
    at_once = encode([read_as_tensor(tmp_path / "photo.png")], masks=[mask])
    small = resized(torch.from_numpy(read_picture(tmp_path / "photo.png")), 64).movedim(0, -1)
    by_hand = encode([small], masks=[resized((mask[..., None] * 255).byte(), 64)[0]])
    assert torch.equal(at_once.latents, by_hand.latents)
    assert torch.equal(at_once.weights, by_hand.weights)


def test_no_more_than_one_colour_of_one_picture_is_held_at_its_own_size(monkeypatch):
    """Of pictures that came in whole nothing is copied: each colour is looked at by itself, and is gone then."""
    seen, plane = [], shrinking._plane
    monkeypatch.setattr(shrinking, "_plane", lambda one, *rest: seen.append(tuple(one.shape)) or plane(one, *rest))
    images = torch.rand(3, 100, 120, 3)
    handed = [picture.data_ptr() for picture in images]
    looked = []
    resize = shrinking.resized
    monkeypatch.setattr(
        "contextual_inversion.core.training.pictures.resized",
        lambda picture, *rest: looked.append(picture.data_ptr()) or resize(picture, *rest),
    )
    assert len(encode(images).latents) == 3
    assert seen == [(100, 120)] * 9
    assert looked == handed, "the pictures themselves, and no copies of them"


def test_what_is_transparent_is_white_and_what_is_not_stays():
    """As the commands read a cut-out: METHODS.md has no say in it, the two ways into a training have to agree."""
    pixels = drawn(64, 80)
    clear = torch.zeros(64, 80)
    clear[:, :30] = 1
    white = torch.from_numpy(pixels).float() / 255
    white[:, :30] = 1
    images = [torch.from_numpy(pixels).float() / 255]
    assert torch.equal(encode(images, transparency=[clear]).latents, encode([white]).latents)
    assert encode(images, transparency=[clear]).weights is None, "white counts"
    # What Load Image says of a picture without transparency.
    assert torch.equal(encode(images, transparency=torch.zeros(1, 64, 64)).latents, encode(images).latents)
    assert encode(images, transparency=[clear]).digest != encode(images).digest
    with pytest.raises(ValueError, match="mask 1 is 64 x 64 pixels and its picture 80 x 64"):
        encode(images, transparency=torch.ones(1, 64, 64))
    with pytest.raises(ValueError, match="1 pictures need as many masks, got 2"):
        encode(images, transparency=torch.zeros(2, 64, 64))
