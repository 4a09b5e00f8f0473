"""One picture, one word on the command line, with the bundled model: from pretraining to trials."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("tyro")

from PIL import Image

from contextual_inversion.cli import pretrain_encoder
from contextual_inversion.cli.experiments import encoder_trials, encoder_ways
from contextual_inversion.cli.experiments.trials import Comparison, demo_model
from contextual_inversion.cli.main import main
from contextual_inversion.core.files import load_concept, save_bundle
from contextual_inversion.core.files.tuning_encoder import load_tuning_encoder
from contextual_inversion.core.inspection.world.world_evaluation import SIZE
from contextual_inversion.core.maths.schedule import add_noise, at_timesteps, prediction_target
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.image_encoder import ImageEncoder
from contextual_inversion.core.models.lora import from_lora
from contextual_inversion.core.models.low_rank import apply_deltas
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.training.one_picture.predict import latents_and_features, predict_concept
from contextual_inversion.core.world.concepts import CONCEPTS
from contextual_inversion.core.world.prompts import held_out_prompts, spread
from contextual_inversion.core.world.render import concept_images
from contextual_inversion.core.world.scenes import IMAGE_SIZE

WIDTHS = {"clip_l": 128}


def command(folder: Path, name: str, *arguments: object) -> dict:
    """The figures of a command that succeeds."""
    report = folder / f"{name}.json"
    assert main([name, *map(str, arguments), "--json", str(report)]) == 0
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    file = folder / "mine.safetensors"
    options = ("--world", 8, "--steps", 2, "--batch", 2, "--ema", 0.5, "--previews", folder, "--preview-every", 2)
    report = command(folder, "pretrain-encoder", *options, "--out", file)
    assert Path(report["file"]) == file
    assert report["bytes"] == file.stat().st_size
    assert (report["steps"], report["processes"]) == (2, 1)
    assert Image.open(next(folder.glob("*.png"))).size == (4 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    assert main(["pretrain-encoder", "--out", str(file)]) == 1  # what took hours is not written over
    return file


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "my goblet.png"
    images, _, _ = concept_images("goblet", 1, seed=0)
    Image.fromarray(images[0]).save(file)
    return file


@pytest.mark.parametrize("name", ["my encoder", "encoder.pt", "con", "taken"])
def test_a_name_that_cannot_be_written_is_refused_before_the_training(tmp_path, monkeypatch, name):
    (tmp_path / "taken.safetensors").touch()
    monkeypatch.setattr(pretrain_encoder, "load_model", pytest.fail)
    with pytest.raises((ValueError, FileExistsError)):
        pretrain_encoder.main(world=4, steps=1, batch=2, out=tmp_path / name)


def test_beginning_anew_does_not_replace_the_checkpoints_that_wait(tmp_path, monkeypatch):
    (tmp_path / "step_000200.safetensors").touch()
    monkeypatch.setattr(pretrain_encoder, "load_model", pytest.fail)
    with pytest.raises(FileExistsError, match="add --resume"):
        pretrain_encoder.main(world=4, steps=1, out=tmp_path / "new", checkpoints=tmp_path)


def test_a_picture_becomes_a_word_and_tuning_goes_on_from_it(encoder, picture, tmp_path):
    options = ("--encoder", encoder, "--class-word", "goblet", "--name", "cup")
    predicted = command(tmp_path, "predict", picture, *options, "--out", tmp_path / "one")
    before = load_concept(predicted["bundle"], widths=WIDTHS)
    assert (before.name, before.class_word) == ("cup", "goblet")
    assert before.hard_token == predicted["hard_token"]
    assert predicted["numbers"] == sum(value.numel() for value in before.lora.values())
    more = ("--predicted", predicted["bundle"], "--steps", 1, "--batch", 1, "--alpha", 0.5)
    tuned = command(tmp_path, "tune", picture, *options, *more, "--out", tmp_path / "two")
    after = load_concept(tuned["bundle"], widths=WIDTHS)
    assert not torch.equal(after.vectors["clip_l"], before.vectors["clip_l"])
    assert tuned["tuned"]["seconds"] > 0
    alone = load_concept(tuned["embedding"], widths=WIDTHS)
    torch.testing.assert_close(alone.vectors["clip_l"], after.vectors["clip_l"])


def test_stock_diffusers_draws_the_same_picture_with_the_bundle(encoder, tmp_path):
    """diffusers' own pipeline and LoRA loader, with the LoRA of the saved bundle, against the deltas in memory."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    network = load_tuning_encoder(encoder)
    for head in network.hypernetwork.b_heads:  # an encoder that learned nothing changes nothing
        torch.nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(1))
    tiny = load_tiny()
    model = DiffusersModel.from_tiny(tiny)
    pixels = torch.from_numpy(concept_images("goblet", 1, seed=0)[0][0]) / 255
    concept = predict_concept(model, ImageEncoder.tiny(), network, pixels, name="cup")
    bundle = load_concept(save_bundle(concept, tmp_path, dtype=torch.float32), widths=WIDTHS)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=tiny.vae,
        text_encoder=None,
        tokenizer=None,
        unet=tiny.unet,
        scheduler=diffusers.DDIMScheduler.from_config(tiny.scheduler_config, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def drawn(vectors):
        with torch.no_grad():
            prompts = [
                model.conditioning(encode_prompts(model, [text], vectors=vectors), SIZE).context
                for text in ("a photo of a {} in the snow", "")
            ]
        options = {"height": IMAGE_SIZE, "width": IMAGE_SIZE, "num_inference_steps": 2, "output_type": "np"}
        generator = torch.Generator().manual_seed(1)
        return pipeline(
            prompt_embeds=prompts[0], negative_prompt_embeds=prompts[1], generator=generator, **options
        ).images

    with apply_deltas(model, from_lora(model, concept.lora)):
        memory = drawn(concept.vectors)
    plain = drawn(concept.vectors)
    pipeline.load_lora_weights(dict(bundle.lora))
    np.testing.assert_allclose(drawn(bundle.vectors), memory, atol=1e-4)
    pipeline.disable_lora()
    np.testing.assert_array_equal(drawn(bundle.vectors), plain)
    assert np.abs(plain - memory).max() > 0.01


def test_the_bundled_encoder_knows_more_of_a_picture_than_its_nearest_word():
    """Of concepts that it never saw, on average: the denoising error of the picture with what it predicts, against the
    prompt with the nearest real word. That it belongs to the bundled model, `predict_concept` sees to."""
    model, (images, network) = demo_model(), encoder_ways.loaded(None)
    errors = []
    for name in CONCEPTS:
        picture = torch.from_numpy(concept_images(name, 1, seed=1)[0][0]) / 255
        concept = predict_concept(model, images, network, picture)
        latents, _ = latents_and_features(model, images, picture, IMAGE_SIZE)
        word = denoising_error(model, latents, words=concept.hard_token)
        with apply_deltas(model, from_lora(model, concept.lora)):
            errors.append((word, denoising_error(model, latents, vectors=concept.vectors)))
    word, predicted = np.mean(errors, axis=0)
    assert predicted < 0.95 * word


@torch.no_grad()
def denoising_error(model, latents, **slot):
    """Of a picture under "a photo of a ...", the mean over timesteps."""
    times = torch.arange(60, 1000, 120)
    latents = latents.expand(len(times), -1, -1, -1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    alpha_bar = at_timesteps(model.schedule.alpha_bar, times)
    context = model.conditioning(encode_prompts(model, ["a photo of a {}"], **slot), SIZE).expand(len(times))
    found = model.predict(add_noise(latents, noise, alpha_bar), times, context)
    return float((found - prediction_target(model.schedule.prediction_type, latents, noise, alpha_bar)).square().mean())


def test_mistakes_say_what_to_do(encoder, picture, capsys, monkeypatch):
    monkeypatch.delenv("CONTEXTUAL_INVERSION_TRACEBACK", raising=False)
    assert main(["tune", str(picture), "--encoder", str(encoder), "--steps", "13"]) == 1
    assert "12 steps at most" in capsys.readouterr().err
    assert main(["predict", str(picture), "--encoder", str(encoder), "--model", str(picture.parent)]) == 1
    assert main(["pretrain-encoder", "--world", "4", "--pictures", str(picture.parent)]) == 1
    assert "give one of" in capsys.readouterr().err


def test_trials_judge_every_way_and_are_not_done_twice(encoder, tmp_path, monkeypatch):
    ways = (
        replace(encoder_ways.TUNED, steps=1, dual=True),
        encoder_ways.Way("ti-1", "plain TI, 1 step", inverted=1),
        replace(encoder_ways.TUNED, name="full", steps=1, rank=encoder_ways.FULL),
    )
    part = Comparison("encoder-ways", ways, (("tuned", "ti-1"), ("full", "tuned")))
    monkeypatch.setattr(encoder_trials, "offered", lambda: {"ways": part})
    monkeypatch.setattr(encoder_ways, "sampled", partial(encoder_ways.sampled, steps=2))
    monkeypatch.setattr(encoder_ways, "draw", partial(encoder_ways.draw, steps=2))
    monkeypatch.setattr(encoder_ways, "PLAIN", 1)
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- encoder-ways: begin -->\nold\n<!-- encoder-ways: end -->\nafter\n")
    options = ("--encoder", encoder, "--folder", tmp_path / "cells", "--concepts", "castle", "racer", "--seeds", 1)
    options += ("--prompts", 2, "--markdown", document)
    first = command(tmp_path, "encoder-trials", *options)["parts"]["encoder-ways"]
    assert [(trial["method"], trial["concept"]) for trial in first["trials"]] == [
        (way.name, concept) for way in ways for concept in ("castle", "racer")
    ]
    assert all(0 <= trial["fidelity"] <= 1 and trial["seconds"] > 0 for trial in first["trials"])
    assert all(-1 <= trial["nearness"] <= 1 for trial in first["trials"])
    cosines = [trial["nearness"] for trial in first["trials"]]
    gain = next(row for row in first["comparisons"] if row["measure"] == "nearness")
    assert gain["difference"] == pytest.approx(sum(cosines[:2]) / 2 - sum(cosines[2:4]) / 2)
    written = document.read_text()
    assert written.startswith("before\n")
    assert written.endswith("end -->\nafter\n")
    assert "old" not in written
    assert f"{gain['difference']:+.3f} (" in written
    monkeypatch.setattr(encoder_ways.EncoderTrial, "__call__", None)
    assert command(tmp_path, "encoder-trials", *options)["parts"]["encoder-ways"]["trials"] == first["trials"]


def test_a_cell_travels_to_another_process_and_is_kept_by_what_decides_it(encoder):
    every = (*encoder_ways.WAYS, *encoder_ways.RANK_WAYS)
    for way in every:
        assert pickle.loads(pickle.dumps((encoder_ways.EncoderTrial(encoder, 2), way)))[1] == way
    keys = {way.key(0): way for way in every}
    assert len(keys) == len(every) - 1  # `predicted` is in both parts
    assert not keys.keys() & {way.key(5) for way in every}
    for part in encoder_trials.offered().values():
        names = {way.name for way in part.arms}
        assert names >= {name for pair in part.pairs for name in pair}


def test_a_lora_of_another_rank_is_the_nearest_one(encoder, picture):
    model = demo_model()
    images, network = encoder_ways.loaded(encoder)
    start = encoder_ways.predict_concept(model, images, network, torch.rand(128, 128, 3))
    with torch.no_grad():
        lora = {key: value if key.endswith("alpha") else torch.randn(value.shape) for key, value in start.lora.items()}
    start = replace(start, lora=lora)
    whole = {layer: delta.weight() for layer, delta in from_lora(model, start.lora).items()}
    for rank, missing in ((1, True), (2, True), (4, False), (8, False), (encoder_ways.FULL, False)):
        deltas = from_lora(model, encoder_ways.with_rank(model, start, rank).lora)
        change = {layer: delta.weight if rank == 0 else delta.weight() for layer, delta in deltas.items()}
        error = max(float((change[layer] - whole[layer]).norm() / whole[layer].norm()) for layer in whole)
        assert (error > 0.1) is missing
        assert error < (1 if missing else 1e-5)
        assert rank == encoder_ways.FULL or {delta.rank for delta in deltas.values()} == {rank}
    assert encoder_ways.with_rank(model, start, None) is start


def test_prompts_are_taken_from_all_kinds():
    every = held_out_prompts("grass")
    for count in (0, 3, 7, 14, len(every), len(every) + 1):
        assert len(spread(every, count)) == (min(count, len(every)) or len(every))
    few = spread(every, 14)
    assert {prompt.background for prompt in few} == {prompt.background for prompt in every}
    assert {prompt.second is None for prompt in few} == {prompt.style is None for prompt in few} == {True, False}


def test_sizes_are_those_of_encoders_that_are_made(encoder):
    _, network = encoder_ways.loaded(encoder)
    rows = {row["rank"]: row for row in encoder_trials.sizes(network.shape)}
    own = rows[network.shape.preset.rank]
    assert own["encoder"] == network.numbers
    factors = [value for head in ("a_heads", "b_heads") for value in getattr(network.hypernetwork, head)]
    assert (
        own["encoder"] - rows[2]["encoder"] == sum(value.numel() for one in factors for value in one.parameters()) / 2
    )
    # METHODS.md 3.3 counts them for SD 1.x.
    assert (rows[1]["lora_sd15"], rows[4]["lora_sd15"]) == (199_296, 797_184)
