"""CLIP and DINO against transformers' own processors and models, and what is said where they are missing."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import equal_but_for_rounding

from contextual_inversion.core.inspection.evaluation import (
    EncoderNotFoundError,
    bundled_clip,
    encoders_in,
    encoders_on_device,
    load_clip,
    load_dino,
)
from contextual_inversion.core.inspection.evaluation.preprocessing import Preprocessing, read_preprocessing
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer
from contextual_inversion.core.world.concepts import CONCEPTS
from contextual_inversion.core.world.render import concept_images

SHAPES = [(40, 40), (33, 71), (90, 37), (20, 24), (32, 32)]


@pytest.mark.parametrize("which", ["clip", "dino"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_made_ready_as_transformers_does(encoders, processors, draw_picture, which, shape):
    make = processors[which == "dino"]
    folder = encoders.root / ("clip-vit-base-patch32" if which == "clip" else "dino-vits16")
    picture = draw_picture(3, *shape)
    expected = make.from_pretrained(folder)(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    found = read_preprocessing(folder)(picture)
    assert found.dtype == np.float32
    equal_but_for_rounding(torch.from_numpy(found), torch.from_numpy(expected), share=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": {"height": 6, "width": 4}}, (6, 4)),
        ({"size": {"height": 5, "width": 7}}, (5, 7)),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 50}, (50, 50)),
        ({"do_resize": False}, (20, 24)),
    ],
)
def test_newer_spellings_and_a_crop_larger_than_the_picture(processors, tmp_path, draw_picture, settings, expected):
    clip, _ = processors
    own = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2, "do_center_crop": False, **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    picture = draw_picture(5, 20, 24)
    found = read_preprocessing(tmp_path)(picture)
    assert found.shape == (3, *expected)
    theirs = clip(**own)(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
    equal_but_for_rounding(torch.from_numpy(found), theirs, share=1e-6)


def test_clip_features_are_those_of_the_whole_model(encoders, draw_picture):
    pictures = [draw_picture(seed, *shape) for seed, shape in enumerate(SHAPES)]
    captions = ["A photo depicts a dog", "a cat in the snow", "A photo depicts a dog", "x " * 200, ""]
    pixels = torch.from_numpy(np.stack([encoders.clip.preprocessing(picture) for picture in pictures]))
    tokens = tiny_tokenizer()(captions, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        whole = encoders.clip_model(input_ids=tokens.input_ids, pixel_values=pixels)
    found, said = encoders.clip.picture_features(pictures, batch=2), encoders.clip.caption_features(captions, batch=2)
    unit = torch.nn.functional.normalize
    equal_but_for_rounding(unit(found), whole.image_embeds)
    equal_but_for_rounding(unit(said), whole.text_embeds)
    assert float((unit(found) @ unit(found).T).min()) < 0.9, "pictures that look different have different features"
    assert torch.equal(said[0], said[2])
    assert not found.requires_grad
    assert not said.requires_grad


def test_dino_features_are_the_class_token(encoders, draw_picture):
    pictures = [draw_picture(seed, *shape) for seed, shape in enumerate(SHAPES)]
    pixels = torch.from_numpy(np.stack([encoders.dino.preprocessing(picture) for picture in pictures]))
    with torch.no_grad():
        tokens = encoders.dino_model(pixel_values=pixels).last_hidden_state
    seen = []
    found = encoders.dino.picture_features(pictures, batch=2, progress=seen.append)
    equal_but_for_rounding(found, tokens[:, 0])
    assert seen == [2, 2, 1]


def test_the_bundled_pair_is_the_tiny_models_and_knows_its_world():
    tiny, clip = load_tiny(), bundled_clip()
    names = list(CONCEPTS)[:4]
    pictures = [concept_images(name, n=1)[0][0] for name in names]
    small = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(small, size=(64, 64), mode="area").round() / 127.5 - 1
    with torch.no_grad():
        expected = tiny.image_encoder(pixel_values=small).image_embeds
        ids = clip.tokenizer(["a photo of a house"], padding="max_length", return_tensors="pt").input_ids
        said = tiny.text_encoder(input_ids=ids).text_embeds
    cosine = torch.nn.functional.cosine_similarity
    # Pillow and torch may round a mean of four bytes differently by one of 255 levels.
    assert float(cosine(clip.picture_features(pictures), expected).min()) > 0.9999
    torch.testing.assert_close(clip.caption_features(["a photo of a house"]), said)


def test_fingerprints_tell_weights_and_preprocessing_apart(encoders):
    from dataclasses import replace

    again = load_clip(folders=[encoders.root])
    assert again.fingerprint == encoders.clip.fingerprint
    assert replace(again, preprocessing=Preprocessing(size=(8, 8))).fingerprint != again.fingerprint
    assert bundled_clip().fingerprint != again.fingerprint
    assert encoders.dino.fingerprint == load_dino(folders=[encoders.root]).fingerprint != again.fingerprint


def test_a_report_names_an_encoder_and_not_a_folder_of_the_machine(encoders):
    assert encoders.clip.name == "openai/clip-vit-base-patch32"
    assert load_dino(encoders.root / "dino-vits16").name == "dino-vits16"


def test_encoders_are_where_they_were_after_use():
    class Traveller(torch.nn.Linear):
        def to(self, device):
            trips.append(str(device))
            return self

    trips, modules = [], (Traveller(1, 1), Traveller(1, 1))
    with encoders_on_device([SimpleNamespace(modules=lambda: modules)], "cuda"):
        assert trips == ["cuda", "cuda"]
    assert trips == ["cuda", "cuda", "cpu", "cpu"]


def test_folders_are_offered_by_what_is_in_them(encoders, tmp_path):
    (tmp_path / "nothing").mkdir()
    assert encoders_in([encoders.root, tmp_path], ("clip",)) == ["clip-vit-base-patch32"]
    assert encoders_in([encoders.root, tmp_path], ("vit",)) == ["dino-vits16"]


def test_a_missing_encoder_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "clip_vision"
    with pytest.raises(EncoderNotFoundError) as found:
        load_clip(folders=[home])
    said = str(found.value)
    assert "nothing is downloaded" in said
    assert "model.safetensors" in said
    assert "preprocessor_config.json" in said
    assert str(home / "clip-vit-base-patch32") in said


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "tokenizer"])
def test_a_folder_with_a_file_missing_names_it(encoders, tmp_path, name):
    folder = tmp_path / "clip"
    shutil.copytree(encoders.root / "clip-vit-base-patch32", folder)
    for file in folder.glob("*"):
        if file.name == name or (name == "tokenizer" and file.name in ("tokenizer.json", "vocab.json", "merges.txt")):
            file.unlink()
    with pytest.raises(EncoderNotFoundError, match="vocab.json, merges.txt" if name == "tokenizer" else name):
        load_clip(folder)


def test_a_pickle_is_not_opened(encoders, tmp_path):
    folder = tmp_path / "dino"
    shutil.copytree(encoders.root / "dino-vits16", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderNotFoundError, match=r"pickle.*convert it once"):
        load_dino(folder)


def test_another_kind_of_model_is_refused(encoders):
    with pytest.raises(ValueError, match="type 'vit'; wanted is CLIP"):
        load_clip(encoders.root / "dino-vits16")
    with pytest.raises(ValueError, match="type 'clip'; wanted is a DINO"):
        load_dino(encoders.root / "clip-vit-base-patch32")
