"""Every measure against its definition in NumPy float64 over transformers' own features (METHODS.md 2.7)."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPProcessor

from contextual_inversion.core.inspection.evaluation import Evaluator
from contextual_inversion.core.inspection.evaluation.pictures import as_bytes, as_reference
from contextual_inversion.core.inspection.evaluation.scores import TEXT_PREFIX


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M)."""
    a, b = (x.astype(np.float64) for x in (a, b))
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]


@pytest.fixture(scope="module")
def given(draw_picture):
    pictures, references = [draw_picture(i) for i in range(4)], [draw_picture(50 + i, 30, 44) for i in range(3)]
    masks = [np.random.default_rng(i).random((40, 40)).round().astype(np.float32) for i in range(4)]
    reference_masks = [np.random.default_rng(9 + i).random((30, 44)).round().astype(np.float32) for i in range(3)]
    return pictures, references, masks, reference_masks


def cut_out(picture: np.ndarray, mask: np.ndarray, fill: int) -> np.ndarray:
    result = picture.copy()
    result[mask == 0] = fill
    return result


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Short side 512, as the references are."""
    height, width = picture.shape[:2]
    scale = 512 / min(height, width)
    size = (512, int(height * scale)) if width <= height else (int(width * scale), 512)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def test_every_measure_is_what_it_is_defined_to_be(encoders, given):
    pictures, references, masks, reference_masks = given
    captions = ["a dog in the snow", "a red dog", "a dog", "a dog in the snow"]
    evaluator = Evaluator(encoders.clip, encoders.dino, fill=0.2, batch=3)
    known = evaluator.references(references, reference_masks)
    scores = evaluator.score(pictures, captions, known, masks)

    def clip(shown):
        pixels = torch.from_numpy(np.stack([encoders.clip.preprocessing(picture) for picture in shown]))
        with torch.no_grad():
            seen = encoders.clip_model.vision_model(pixel_values=pixels).pooler_output
            return encoders.clip_model.visual_projection(seen).numpy()

    def dino(shown):
        pixels = torch.from_numpy(np.stack([encoders.dino.preprocessing(picture) for picture in shown]))
        with torch.no_grad():
            return encoders.dino_model(pixel_values=pixels).last_hidden_state[:, 0].numpy()

    tokens = encoders.clip.tokenizer(["A photo depicts " + c for c in captions], padding=True, return_tensors="pt")
    with torch.no_grad():
        text = encoders.clip_model.text_model(input_ids=tokens.input_ids).pooler_output
        text = encoders.clip_model.text_projection(text).numpy()
    real = [enlarged(picture) for picture in references]
    cut = [cut_out(picture, mask, 51) for picture, mask in zip(pictures, masks, strict=True)]
    real_cut = [enlarged(cut_out(p, mask, 51)) for p, mask in zip(references, reference_masks, strict=True)]
    expected = {
        "clip_t": np.maximum(np.diag(cosines(clip(pictures), text)), 0),
        "clip_i": cosines(clip(pictures), clip(real)).mean(axis=1),
        "clip_i_fg": cosines(clip(cut), clip(real_cut)).mean(axis=1),
        "dino": cosines(dino(pictures), dino(real)).mean(axis=1),
        "dino_fg": cosines(dino(cut), dino(real_cut)).mean(axis=1),
    }
    assert list(scores) == list(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(scores[key], values, atol=1e-5, err_msg=key)
        assert scores[key].dtype == np.float64
    assert np.ptp(scores["dino"]) > 1e-3, "the pictures are meant to be told apart"
    assert abs(scores["dino"] - scores["dino_fg"]).max() > 1e-3, "the foreground is meant to matter"


def test_clip_t_is_what_torchmetrics_says(encoders, processors, given):
    from torchmetrics.functional.multimodal import clip_score

    reading = processors[0].from_pretrained(encoders.root / "clip-vit-base-patch32")
    processor = CLIPProcessor(reading, encoders.clip.tokenizer)

    class Features(torch.nn.Module):
        """What torchmetrics asks of a CLIP: features as tensors, which transformers 5 no longer gives by themselves."""

        config = encoders.clip_model.config

        def get_image_features(self, pixels):
            return encoders.clip_model.get_image_features(pixels).pooler_output

        def get_text_features(self, ids, mask):
            return encoders.clip_model.get_text_features(ids, mask).pooler_output

    pictures, captions = given[0], ["a dog in the snow", "a red dog", "a dog", "a blue cup on a table"]
    scores = Evaluator(encoders.clip, None).score(pictures, captions, None)
    for picture, caption, ours in zip(pictures, captions, scores["clip_t"], strict=True):
        shown = torch.from_numpy(picture).permute(2, 0, 1)
        with torch.no_grad():
            theirs = clip_score(shown, TEXT_PREFIX + caption, lambda: (Features(), processor))
        assert ours == pytest.approx(float(theirs) / 100, abs=1e-5)
    assert np.ptp(scores["clip_t"]) > 1e-3


def test_the_mean_is_that_of_all_pairs(encoders, given):
    """METHODS.md 2.7: the mean of all reference x generated cosine pairs."""
    pictures, references, _, _ = given
    evaluator = Evaluator(None, encoders.dino)
    scores = evaluator.score(pictures, [""] * 4, evaluator.references(references))
    features = [encoders.dino.picture_features(x) for x in (pictures, [as_reference(p) for p in references])]
    assert scores["dino"].mean() == pytest.approx(cosines(*(f.numpy() for f in features)).mean(), abs=1e-6)


def test_what_cannot_be_measured_is_left_out(encoders, given):
    pictures, references, masks, reference_masks = given
    only_dino, only_clip = Evaluator(None, encoders.dino), Evaluator(encoders.clip, None)
    assert list(only_dino.score(pictures, [""] * 4, only_dino.references(references))) == ["dino"]
    assert list(only_clip.score(pictures, ["a"] * 4, None)) == ["clip_t"]
    some = only_dino.references(references, reference_masks)
    partly = only_dino.score(pictures, [""] * 4, some, [masks[0], None, masks[2], None])
    whole = only_dino.score(pictures, [""] * 4, some, masks)
    assert np.isnan(partly["dino_fg"]).tolist() == [False, True, False, True]
    np.testing.assert_allclose(partly["dino_fg"][[0, 2]], whole["dino_fg"][[0, 2]], atol=1e-6)


def test_a_picture_is_measured_alone_as_in_a_batch(encoders, given):
    pictures, references, _, _ = given
    together, alone = Evaluator(encoders.clip, encoders.dino), Evaluator(encoders.clip, encoders.dino, batch=1)
    captions = ["a", "b", "c", "d"]
    known = together.references(references)
    for key, values in together.score(pictures, captions, known).items():
        np.testing.assert_allclose(values, alone.score(pictures, captions, known)[key], atol=1e-6)


def test_progress_counts_every_picture_that_is_read(encoders, given):
    pictures, references, masks, reference_masks = given
    evaluator, seen = Evaluator(encoders.clip, encoders.dino), []
    known = evaluator.references(references, reference_masks, seen.append)
    evaluator.score(pictures, [""] * 4, known, masks, seen.append)
    assert sum(seen) == 2 * 2 * (len(references) + len(pictures))


def test_what_does_not_fit_is_named(encoders, given):
    pictures, references, masks, reference_masks = given
    evaluator = Evaluator(encoders.clip, None)
    known = evaluator.references(references)
    with pytest.raises(ValueError, match="CLIP or DINO"):
        Evaluator(None, None)
    with pytest.raises(ValueError, match="at least one reference"):
        evaluator.references([])
    with pytest.raises(ValueError, match="1 captions, 4 pictures"):
        evaluator.score(pictures, ["a"], known)
    with pytest.raises(ValueError, match="the references need masks too"):
        evaluator.score(pictures, ["a"] * 4, known, masks)
    with pytest.raises(ValueError, match="2 masks, 3 pictures"):
        evaluator.references(references, reference_masks[:2])
    with pytest.raises(ValueError, match="as large as its picture"):
        evaluator.references(references, [mask.T for mask in reference_masks])


def test_pictures_of_a_graph_are_the_bytes_that_were_drawn(draw_picture):
    picture = draw_picture(7)
    [found] = as_bytes(torch.from_numpy(picture.astype(np.float32) / 255)[None])
    assert np.array_equal(found, picture)
    with pytest.raises(ValueError, match="picture 1 must be"):
        as_bytes(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ValueError, match="no picture"):
        as_bytes(torch.zeros(0, 4, 4, 3))


def test_the_caption_has_the_papers_prefix():
    assert TEXT_PREFIX == "A photo depicts "
