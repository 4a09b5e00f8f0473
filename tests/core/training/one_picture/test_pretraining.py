"""Pretraining a tuning-encoder: it learns, repeats itself, resumes, and is the same on several processes."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from encoder_child import main as pretrain_alone
from PIL import Image
from safetensors.torch import load_file
from tuning_parts import images, model, pictures, settings, source

from contextual_inversion.core.training.one_picture.pictures import (
    FolderPictures,
    GivenPictures,
    ShardPictures,
    WorldPictures,
)
from contextual_inversion.core.training.one_picture.pretraining import PretrainedEncoder, pretrain_encoder
from contextual_inversion.core.training.run.checkpoint import CheckpointMismatchError
from contextual_inversion.core.training.run.events import CheckpointSaved, Preview, Started, Step
from contextual_inversion.core.training.run.processes import Processes
from contextual_inversion.core.world.concepts import RESERVED

HERE = Path(__file__).parents[1]


def run(kind="sd1", *, resume=None, given=None, **keywords):
    *_, last = pretrain_encoder(model(kind), images(), given or source(), settings(**keywords), resume=resume)
    assert isinstance(last, PretrainedEncoder)
    return last


def same(one, other):
    states = one.encoder.state_dict(), other.encoder.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_stream_starts_reports_shows_and_ends():
    started, *events, last = pretrain_encoder(
        model(), images(), source(), settings(steps=5, preview_every=4, preview_pictures=2)
    )
    assert isinstance(started, Started)
    assert started.trainable_numbers == last.encoder.numbers
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert [None if step.losses is None else len(step.losses["diffusion"]) for step in steps] == [None, 2, None, 2, 1]
    (preview,) = [event for event in events if isinstance(event, Preview)]
    assert preview.images.shape == (4, 64, 64, 3)
    assert set(last.losses) == {"diffusion", "contrastive", "l2"}
    assert last.encoder.negatives["clip_l"].shape == (6, 32)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_it_learns_and_nothing_else_moves(kind):
    subject = model(kind)
    parts = [subject.unet, *(encoder.module for encoder in subject.text_encoders.values()), images().tower]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    last = run(kind, steps=30, contrastive=0.1, l2=0.0, ema=None)
    both = last.losses["diffusion"] + 0.1 * last.losses["contrastive"]
    assert both[-5:].mean() < both[:5].mean()
    assert list(last.encoder.negatives) == list(subject.text_encoders)
    for part, state in zip(parts, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert all(value.grad is None for value in part.parameters())
    assert all(bool(head.weight.abs().max() > 0) for head in last.encoder.hypernetwork.b_heads)


def test_a_run_repeats_itself_and_a_seed_changes_it():
    one, again, other = run(), run(), run(seed=1)
    assert same(one, again)
    assert not torch.equal(one.losses["diffusion"], other.losses["diffusion"])


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    # Without a cache a step's pictures are always prepared together, so that not even rounding differs.
    whole = run(steps=6, cache=0)
    with pretrain_encoder(
        model(), images(), source(), settings(steps=6, cache=0, checkpoint_dir=tmp_path, checkpoint_every=2)
    ) as events:
        for event in events:
            if isinstance(event, CheckpointSaved) and event.step == 4:
                break
    resumed = run(steps=6, cache=0, resume=tmp_path)
    assert torch.equal(resumed.losses["diffusion"], whole.losses["diffusion"])
    assert same(resumed, whole)
    with pytest.raises(CheckpointMismatchError, match="rank"):
        run(steps=6, rank=2, resume=tmp_path)
    with pytest.raises(CheckpointMismatchError, match="pictures"):
        run(steps=6, given=GivenPictures(pictures(5)), resume=tmp_path)


def test_closing_the_stream_keeps_the_work(tmp_path):
    whole = run(steps=4, cache=0)
    events = pretrain_encoder(model(), images(), source(), settings(steps=4, cache=0, checkpoint_dir=tmp_path))
    with events:
        next(event for event in events if getattr(event, "step", None) == 3)
    (kept,) = tmp_path.iterdir()
    assert "3" in kept.name
    assert same(run(steps=4, cache=0, resume=tmp_path), whole)


def test_an_error_in_a_step_keeps_the_steps_before_it(tmp_path, monkeypatch):
    """As when ComfyUI's Cancel ends a step from within the model."""
    whole, subject, steps = run(steps=4, cache=0), model(), []
    predict = subject.predict

    def interrupted(*arguments, **keywords):
        if len(steps) == 2:
            raise KeyError("interrupted")
        return predict(*arguments, **keywords)

    monkeypatch.setattr(subject, "predict", interrupted)

    def follow(events):
        for event in events:
            steps.extend([event] if isinstance(event, Step) else [])

    with pytest.raises(KeyError, match="interrupted"):
        follow(pretrain_encoder(subject, images(), source(), settings(steps=4, cache=0, checkpoint_dir=tmp_path)))
    (kept,) = tmp_path.iterdir()
    assert "2" in kept.name
    assert same(run(steps=4, cache=0, resume=tmp_path), whole)


def test_gradient_checkpointing_changes_nothing():
    kept, again = run(steps=2), run(steps=2, gradient_checkpointing=True)
    for name, value in kept.encoder.state_dict().items():
        torch.testing.assert_close(again.encoder.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_mixed_precision_is_near_full_precision():
    full, mixed = run(steps=2), run(steps=2, precision="bf16")
    assert not torch.equal(full.losses["diffusion"], mixed.losses["diffusion"])
    torch.testing.assert_close(full.losses["diffusion"], mixed.losses["diffusion"], rtol=0.05, atol=0)


def test_the_dual_path_is_trained_when_asked_for():
    """At alpha = 0 the loss is the plain model's with the nearest word: no delta gets a gradient from it."""
    blended = run(steps=2, alpha=0.5)
    soft, one = run(steps=2), run(steps=2, alpha=1.0)
    assert not torch.equal(blended.losses["diffusion"], soft.losses["diffusion"])
    torch.testing.assert_close(one.losses["diffusion"], soft.losses["diffusion"])
    hard = run(steps=2, alpha=0.0, contrastive=0.0, l2=0.0, ema=None)
    assert all(bool((head.weight == 0).all()) for head in hard.encoder.hypernetwork.b_heads)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_processes_of_accelerate_do_what_one_does(tmp_path):
    # accelerate's `--cpu` starts several processes through MPI alone; `--multi_gpu` starts them with torch's launcher,
    # and with `cpu=True` they talk through gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(free_port()), str(HERE / "encoder_child.py"), str(tmp_path)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pretrain_alone(tmp_path)
    one = load_file(tmp_path / "rank0_of_1.safetensors")
    ranks = [load_file(tmp_path / f"rank{rank}_of_2.safetensors") for rank in range(2)]
    start = run(steps=1, learning_rate=1e-30).encoder.state_dict()
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        if name not in start:
            torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-5)
            continue
        # Of what a weight tensor moved, as a whole: where a gradient is 0 but for rounding, AdamW makes rounding large.
        moved, apart = (value - start[name]).norm(), (ranks[0][name] - value).norm()
        assert apart <= 1e-3 * moved, name


def test_a_batch_that_cannot_be_shared_is_an_error():
    with pytest.raises(ValueError, match="evenly"):
        next(pretrain_encoder(model(), images(), source(), settings(), processes=Processes(0, 3)))


def test_a_loss_that_explodes_stops_the_run():
    with pytest.raises(RuntimeError, match="smaller learning rate"):
        run(steps=8, learning_rate=1e30, clip_norm=None)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"alpha": 1.5}, {"preset": "huge"}, {"learning_rate": 0.0}, {"ema": 1.0}, {"timesteps": (1000,)}],
)
def test_settings_that_mean_nothing_are_errors(wrong):
    with pytest.raises(ValueError, match=r"at least|alpha|preset|greater|ema|timesteps"):
        settings(**wrong)


def test_no_world_picture_shows_or_imitates_a_held_out_concept():
    world = WorldPictures(count=600, seed=3)
    scenes = [world.scene(index) for index in range(len(world))]
    assert all(scene.concept is None and scene.second is None for scene in scenes)
    triples = {(scene.subject, scene.colour, scene.second_colour) for scene in scenes}
    assert not {(a, b, c) for a, b, c in RESERVED} & triples
    assert not {(a, c, b) for a, b, c in RESERVED} & triples
    assert {scene.worn for scene in scenes} == {"", "hat", "crown"}


def test_pictures_of_a_folder_and_of_a_shard_are_the_same(tmp_path):
    arrays = (pictures(3) * 255).round().to(torch.uint8).numpy()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, array in enumerate(arrays):
            data = io.BytesIO()
            Image.fromarray(array).save(data, "PNG")
            (tmp_path / "folder").mkdir(exist_ok=True)
            (tmp_path / "folder" / f"{number}.png").write_bytes(data.getvalue())
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data.getvalue())
            data.seek(0)
            tar.addfile(member, data)
    folder, shard = FolderPictures(tmp_path / "folder"), ShardPictures([tmp_path / "shard.tar"])
    assert len(folder) == len(shard) == 3
    for index, array in enumerate(arrays):
        assert torch.equal(folder.picture(index), torch.from_numpy(array).float() / 255)
        assert torch.equal(folder.picture(index), shard.picture(index))
    (tmp_path / "folder" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        FolderPictures(tmp_path / "folder").picture(1)
    with pytest.raises(ValueError, match="no pictures"):
        FolderPictures(tmp_path / "empty")
