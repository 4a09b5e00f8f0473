"""Pictures, masks and their augmentation before the autoencoder."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stub_model import StubModel

from contextual_inversion.core.training import pictures as training_pictures
from contextual_inversion.core.training.pictures import _augmenting_grid, _prepare, encode_pictures
from contextual_inversion.core.training.preparation import resolution_for
from contextual_inversion.core.training.settings import Augmentation, TrainSettings

STILL = Augmentation(rotation=0, rotate=0, flip=0, random_crop=True, bank=4)


def encode(images, masks=None, augmentation=None, resolution=64, seed=0):
    return encode_pictures(StubModel(), images, masks, resolution=resolution, augmentation=augmentation, seed=seed)


def test_one_picture_is_enough_and_none_is_an_error():
    assert encode(torch.rand(1, 64, 64, 3)).pictures == 1
    for nothing in (torch.zeros(0, 64, 64, 3), []):
        with pytest.raises(ValueError, match="at least one training picture is needed"):
            encode(nothing)


def test_a_picture_of_the_right_size_is_not_touched():
    picture, mask = torch.rand(3, 64, 64), torch.rand(1, 64, 64)
    for augmentation in (None, STILL):
        same, same_mask = _prepare(picture, mask, 64, augmentation, 0, 0)
        torch.testing.assert_close(same, picture, atol=1e-5, rtol=0)
        torch.testing.assert_close(same_mask, mask, atol=1e-5, rtol=0)


def test_unrotated_crops_copy_pixels():
    picture = torch.rand(3, 64, 100)
    crops = [_prepare(picture, picture[:1], 64, STILL, 0, version)[0] for version in range(6)]
    windows = picture.unfold(2, 64, 1).permute(2, 0, 1, 3)
    found = [int((windows - crop).abs().amax((1, 2, 3)).argmin()) for crop in crops]
    for crop, place in zip(crops, found, strict=True):
        torch.testing.assert_close(crop, windows[place], atol=2e-5, rtol=0)
    assert len(set(found)) > 1


def test_flips_are_mirrors():
    picture = torch.rand(3, 64, 64)
    mirrored, _ = _prepare(picture, picture[:1], 64, Augmentation(rotation=0, rotate=0, flip=1, bank=1), 0, 0)
    torch.testing.assert_close(mirrored, picture.flip(2), atol=1e-5, rtol=0)


def test_an_augmentation_draws_what_it_says(monkeypatch):
    """Angles to either side, flips and crops as often as given, anew for every version."""
    drawn, grid = [], training_pictures._augmenting_grid
    monkeypatch.setattr(training_pictures, "_augmenting_grid", lambda *given: drawn.append(given[2:]) or grid(*given))
    count, chosen = 800, Augmentation(rotation=30, rotate=0.6, flip=0.3, bank=1)
    for version in range(count):
        _prepare(torch.rand(3, 4, 6), torch.ones(1, 4, 6), 4, chosen, 7, version)
    angles, flips, crops = (np.array(column) for column in zip(*drawn, strict=True))
    turned = np.degrees(angles[angles != 0])
    for share, wanted in ((len(turned) / count, 0.6), (flips.mean(), 0.3), ((turned > 0).mean(), 0.5)):
        assert share == pytest.approx(wanted, abs=0.06)
    for low, high, values in ((-30, 30, turned), (0, 1, crops[:, 0]), (0, 1, crops[:, 1])):
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high


@given(angle=st.floats(-0.78, 0.78), h=st.integers(64, 90), w=st.integers(64, 90))
def test_a_rotation_keeps_shapes_and_covers_what_a_rotated_rectangle_covers(angle, h, w):
    # The middle of the canvas is the middle of the picture, and distances keep one ratio: a similarity.
    grid = _augmenting_grid((h, w), 64, angle, False, (0.5, 0.5))[0].double()
    pixels = torch.stack([grid[..., 0] * w / 2, grid[..., 1] * h / 2], -1)
    step_x, step_y = pixels[0, 1] - pixels[0, 0], pixels[1, 0] - pixels[0, 0]
    torch.testing.assert_close(step_x.norm(), step_y.norm(), atol=1e-4, rtol=0)
    assert float((step_x * step_y).sum()) == pytest.approx(0, abs=1e-4)
    assert pixels.mean((0, 1)).abs().max() < step_x.norm()
    assert step_x.norm() >= 1 - 1e-5  # expand, then shrink back: never magnified


@pytest.mark.parametrize(("share", "top"), [(0.0, 0), (0.5, 18), (1.0, 36)])
@pytest.mark.parametrize(("angle", "turns"), [(math.pi / 2, -1), (-math.pi / 2, 1)])
def test_a_quarter_turn_is_just_that(angle, turns, share, top):
    """Its canvas is as wide as the picture was high, and all of its height can be cropped from."""
    picture = torch.rand(3, 64, 100)
    grid = _augmenting_grid((64, 100), 64, angle, False, (share, share))
    found = torch.nn.functional.grid_sample(picture[None], grid, align_corners=False)[0]
    torch.testing.assert_close(found, picture.rot90(turns, (1, 2))[:, top : top + 64], atol=1e-4, rtol=0)


def test_rotated_corners_are_masked_out_and_filled_with_picture():
    turned, mask = _prepare(torch.ones(3, 64, 64), torch.ones(1, 64, 64), 64, Augmentation(rotate=1, bank=1), 0, 1)
    torch.testing.assert_close(turned, torch.ones(3, 64, 64))  # reflection, not black
    assert mask[0, 0, 0] == 0
    assert mask[0, 32, 32] == 1
    assert 0.3 < float(mask.mean()) < 0.999


def test_masks_travel_with_their_picture():
    picture = torch.rand(1, 70, 90, 3).round()
    bank = encode(picture.expand(1, -1, -1, 3), masks=picture[..., 0], augmentation=Augmentation(bank=3))
    plain = encode(picture, augmentation=Augmentation(bank=3))
    assert torch.equal(bank.latents, plain.latents)
    assert bank.weights.shape == (3, 1, 8, 8)
    assert bool((bank.weights <= plain.weights + 1e-6).all())


def test_a_bank_holds_what_the_autoencoder_says_of_the_pictures():
    """Of values in [-1, 1]. A latent weighs the covered share of its cell; a concept keeps one version of a picture."""
    images, mask = torch.rand(8, 64, 64, 3), torch.zeros(8, 64, 64)
    mask[:, ::2, ::2] = 1
    bank = encode(images, masks=mask)
    torch.testing.assert_close(bank.latents, StubModel().to_latents(images.permute(0, 3, 1, 2) * 2 - 1))
    torch.testing.assert_close(bank.weights, torch.full((8, 1, 8, 8), 0.25))
    several = encode(images, augmentation=Augmentation(bank=3))
    assert torch.equal(several.kept(), several.latents[[0, 3, 6, 9, 12, 15]])


def test_any_sizes_make_one_bank_and_versions_lie_together():
    images = [torch.rand(50, 80, 3), torch.rand(1, 200, 90, 3), torch.rand(2, 64, 64, 3)]
    bank = encode(images, augmentation=Augmentation(bank=5))
    assert (bank.pictures, bank.versions, tuple(bank.latents.shape)) == (4, 5, (20, 4, 8, 8))
    plain = encode(images)
    assert (plain.versions, plain.weights, tuple(plain.latents.shape)) == (1, None, (4, 4, 8, 8))


def test_the_bank_is_a_function_of_the_seed_and_the_digest_of_the_pictures():
    images = torch.rand(2, 64, 80, 3)
    first, same, other = (encode(images, augmentation=Augmentation(bank=2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.latents, same.latents)
    assert not torch.equal(first.latents, other.latents)
    assert first.digest == other.digest
    assert encode(images.flip(0)).digest != encode(images).digest
    assert encode(images, masks=torch.ones(2, 64, 80)).digest != encode(images).digest


@pytest.mark.parametrize(
    ("encoders", "prediction", "side"),
    [
        ({"clip_l": 768}, "epsilon", 512),
        ({"clip_h": 1024}, "epsilon", 512),
        ({"clip_h": 1024}, "v_prediction", 768),
        ({"clip_l": 768, "clip_g": 1280}, "epsilon", 1024),
        ({"clip_l": 128}, "v_prediction", 128),
    ],
)
def test_a_model_trains_at_its_own_size_whatever_the_pictures_are(encoders, prediction, side):
    """A photograph of twelve million pixels is not trained on as such, nor is a model taught from its thumbnail."""
    widths = {name: SimpleNamespace(width=width) for name, width in encoders.items()}
    schedule = SimpleNamespace(prediction_type=prediction)
    model = SimpleNamespace(text_encoders=widths, schedule=schedule, latent_factor=8)
    assert resolution_for(model, TrainSettings("dog")) == side
    assert resolution_for(model, TrainSettings("dog", resolution=256)) == 256


@pytest.fixture
def happened(monkeypatch):
    """What is prepared and how much is encoded, in order."""
    found, prepare, encoded = [], training_pictures._prepare, StubModel.to_latents

    def preparing(*given):
        found.append("prepared")
        return prepare(*given)

    def encoding(self, images):
        found.append(f"encoded {len(images)}")
        return encoded(self, images)

    monkeypatch.setattr(training_pictures, "_prepare", preparing)
    monkeypatch.setattr(StubModel, "to_latents", encoding)
    return found


def test_a_bank_is_prepared_and_encoded_piece_by_piece(happened):
    """Ten versions of a few photographs at SDXL's size would be gigabytes before they are latents."""
    bank = encode(torch.rand(3, 64, 64, 3), None, STILL)
    assert happened == []
    assert len(bank.latents) == 12
    assert happened == ["prepared", "prepared", "prepared", "prepared", "encoded 4"] * 3


def test_a_bank_encodes_what_is_needed_when_it_is_needed_and_once(happened):
    bank = encode(torch.rand(3, 64, 64, 3), None, STILL)
    bank.need([7, 2])
    bank.need([2, 7, 2])
    assert happened == ["prepared", "prepared", "encoded 2"]
    assert not bank.complete
    bank.need(range(12))
    assert happened.count("prepared") == 12
    assert bank.complete
    assert not bank._resized, "pictures that are latents are let go"


@pytest.mark.parametrize("augmentation", [Augmentation(bank=3), STILL])
def test_a_row_is_the_same_in_whatever_order_it_is_encoded(augmentation):
    images, masks = torch.rand(3, 70, 90, 3), torch.rand(3, 70, 90).round()
    whole = encode(images, masks, augmentation)
    bits = whole.latents, whole.weights
    other = encode(images, masks, augmentation)
    for row in torch.randperm(len(bits[0]), generator=torch.Generator().manual_seed(0)).tolist():
        other.need([row])
        for ours, theirs in zip(other.at(torch.tensor([row])), bits, strict=True):
            assert torch.equal(ours, theirs[[row]])


def test_a_mask_is_looked_for_without_the_autoencoder(happened):
    """In as many versions as it takes to find something."""
    encode(torch.rand(2, 64, 64, 3), torch.ones(2, 64, 64), STILL)
    assert happened == ["prepared"] * 2


def test_masks_that_do_not_fit_are_told_apart():
    pictures = torch.rand(2, 48, 64, 3)
    with pytest.raises(ValueError, match="2 pictures need as many masks, got 1: one for each, in the same order"):
        encode(pictures, torch.ones(1, 48, 64))
    with pytest.raises(ValueError, match=r"mask 1 is 32 x 16 pixels and its picture 64 x 48: .* no transparency"):
        encode(pictures, torch.zeros(2, 16, 32))
    with pytest.raises(ValueError, match="mask 2 is empty"):
        encode(pictures, torch.stack([torch.ones(48, 64), torch.zeros(48, 64)]))


@pytest.mark.parametrize(
    "augmentation", [None, Augmentation(rotation=0, rotate=0, flip=0.5, random_crop=False, bank=2)]
)
def test_a_subject_that_is_cut_off_is_said_and_not_trained_on(augmentation):
    """Half of the pictures taught nothing, in silence, where the thing stood at the side of a wide one."""
    images, masks = torch.rand(2, 64, 192, 3), torch.zeros(2, 64, 192)
    masks[0, :, 90:100] = 1
    masks[1, :, :40] = 1
    with pytest.raises(ValueError, match="what mask 2 shows lies outside the square"):
        encode(images, masks, augmentation)
    assert len(encode(images[:1], masks[:1], augmentation).weights) == (1 if augmentation is None else 2)
