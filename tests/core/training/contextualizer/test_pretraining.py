"""Algorithm 1 as a stream of events: it learns, repeats itself, resumes, and is the same on several processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretrain_child import main as pretrain_alone
from safetensors.torch import load_file
from stub_model import StubEncoder

from contextual_inversion.core.prompts.captions import ListedCaptions, SplitCaptions, is_held_out
from contextual_inversion.core.training.contextualizer.held_out import (
    Questions,
    held_out_accuracy,
    shuffled_context,
)
from contextual_inversion.core.training.contextualizer.masking import caption_row, mask_rows, nameable_ids
from contextual_inversion.core.training.contextualizer.pretraining import (
    Pretrained,
    PretrainSettings,
    _CaptionBatches,
    pretrain_contextualizer,
    used_tokens,
)
from contextual_inversion.core.training.run.checkpoint import CheckpointMismatchError
from contextual_inversion.core.training.run.draws import generator_for
from contextual_inversion.core.training.run.events import CheckpointSaved, Started, Step
from contextual_inversion.core.training.run.processes import Processes
from contextual_inversion.core.world.sources import WorldCaptions

HERE = Path(__file__).parents[1]
MODES = ("non_padding", "masked")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return StubEncoder()


def settings(**keywords):
    given = {"steps": 4, "batch": 6, "learning_rate": 1e-2, "preset": "tiny", "held_out": 0, "log_every": 2}
    return PretrainSettings(**{**given, **keywords})


def pretrained(encoder, captions=None, resume=None, **keywords):
    *_, last = pretrain_contextualizer(encoder, captions or WorldCaptions(), settings(**keywords), resume=resume)
    assert isinstance(last, Pretrained)
    return last


def test_the_stream_starts_reports_every_few_steps_and_ends(encoder):
    started, *steps, last = pretrain_contextualizer(encoder, WorldCaptions(), settings(steps=5))
    assert isinstance(started, Started)
    assert started.trainable_numbers == sum(value.numel() for value in last.contextualizer.parameters())
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert [None if step.losses is None else len(step.losses["loss"]) for step in steps] == [None, 2, None, 2, 1]
    reported = torch.cat([step.losses["loss"] for step in steps if isinstance(step, Step) and step.losses])
    assert torch.equal(reported, last.losses["loss"])


@pytest.mark.parametrize("mode", MODES)
def test_psi_and_the_mask_row_learn_and_the_encoder_does_not(encoder, mode):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    short, long = pretrained(encoder, steps=1, mode=mode), pretrained(encoder, steps=60, mode=mode, batch=16)
    end = long.losses["loss"][-10:]
    assert end.mean() + 3 * end.std() < long.losses["loss"][0]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(value.grad is None for value in encoder.parameters())
    moved = [
        name
        for name, value in long.contextualizer.state_dict().items()
        if not torch.equal(value, short.contextualizer.state_dict()[name])
    ]
    assert moved == list(long.contextualizer.state_dict())


def test_the_first_loss_is_the_formula_of_each_mode(encoder):
    """Against a loop over positions with textbook log-probabilities."""
    for mode in MODES:
        run = pretrain_contextualizer(encoder, WorldCaptions(), settings(steps=1, mode=mode))
        *_, last = run
        one = settings(mode=mode)
        from contextual_inversion.core.networks.contextualizer import (
            PRESETS,
            Contextualizer,
            EncoderIdentity,
            initialise,
        )

        psi = Contextualizer(EncoderIdentity.of(encoder), PRESETS["tiny"])
        initialise(psi, encoder.table(), generator_for(one.seed, "contextualizer", 0))
        source = SplitCaptions(WorldCaptions(), held_out=False)
        total, weights = 0.0, 0
        for sample in range(one.batch):
            generator = generator_for(one.seed, "caption", sample)
            ids = [encoder.bos, *encoder.tokenize(source.draw(1, generator)[0])[: encoder.max_length - 2], encoder.eos]
            end = len(ids) - 1
            ids += [encoder.pad] * (encoder.max_length - len(ids))
            uniform = torch.rand(encoder.max_length, generator=generator)
            hidden = [0 < place < end and bool(uniform[place] < one.rho) for place in range(encoder.max_length)]
            rows = torch.stack([psi.mask if h else encoder.table()[i] for h, i in zip(hidden, ids, strict=True)])
            logits = psi(encoder.encode(rows[None], torch.tensor([ids])).tokens).log_softmax(-1)[0]
            for place in range(end + 1):
                if mode == "masked":
                    total, weights = total - hidden[place] * logits[place, ids[place]].item(), weights + hidden[place]
                else:
                    total -= (5 if hidden[place] else 1) * logits[place, ids[place]].item()
        expected = total / (weights if mode == "masked" else one.batch * encoder.max_length)
        assert last.losses["loss"][0].item() == pytest.approx(expected, rel=1e-5)


def test_a_run_repeats_itself_and_a_seed_changes_it(encoder):
    one, same, other = pretrained(encoder), pretrained(encoder), pretrained(encoder, seed=1)
    assert torch.equal(one.losses["loss"], same.losses["loss"])
    assert not torch.equal(one.losses["loss"], other.losses["loss"])


def test_a_run_that_was_stopped_goes_on_bit_for_bit(encoder, tmp_path):
    whole = pretrained(encoder, steps=6)
    for event in pretrain_contextualizer(
        encoder, WorldCaptions(), settings(steps=6, checkpoint_dir=tmp_path, checkpoint_every=2)
    ):
        if isinstance(event, CheckpointSaved) and event.step == 4:
            break
    resumed = pretrained(encoder, steps=6, resume=tmp_path)
    assert torch.equal(resumed.losses["loss"], whole.losses["loss"])
    state = whole.contextualizer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.contextualizer.state_dict().items())
    with pytest.raises(CheckpointMismatchError, match="rho"):
        pretrained(encoder, steps=6, rho=0.3, resume=tmp_path)
    with pytest.raises(CheckpointMismatchError, match="captions"):
        pretrained(encoder, ListedCaptions(tuple(f"a dog number {n}" for n in range(40))), steps=6, resume=tmp_path)


def test_closing_the_stream_keeps_the_work(encoder, tmp_path):
    whole = pretrained(encoder, steps=6)
    run = pretrain_contextualizer(encoder, WorldCaptions(), settings(steps=6, checkpoint_dir=tmp_path))
    for event in run:
        if getattr(event, "step", None) == 3:
            run.close()
    resumed = pretrained(encoder, steps=6, resume=tmp_path)
    assert torch.equal(resumed.losses["loss"], whole.losses["loss"])


def test_closing_the_stream_right_after_a_report_keeps_the_work_too(encoder, tmp_path):
    run = pretrain_contextualizer(encoder, WorldCaptions(), settings(steps=6, log_every=2, checkpoint_dir=tmp_path))
    for event in run:
        if getattr(event, "step", None) == 4:
            run.close()
    assert torch.equal(pretrained(encoder, steps=6, resume=tmp_path).losses["loss"], losses_of(encoder, 6))


def test_an_error_in_a_step_keeps_the_steps_before_it(tmp_path):
    """As when ComfyUI's Cancel ends a step from within the text encoder."""
    torch.manual_seed(0)
    encoder, calls = StubEncoder(), []
    encode = encoder.encode

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyError("interrupted")
        return encode(*arguments)

    encoder.encode = interrupted
    with pytest.raises(KeyError, match="interrupted"):
        pretrained(encoder, steps=6, checkpoint_dir=tmp_path)
    encoder.encode = encode
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003.safetensors"]
    assert torch.equal(pretrained(encoder, steps=6, resume=tmp_path).losses["loss"], losses_of(encoder, 6))


def test_an_error_while_the_optimiser_writes_keeps_nothing_half_done(encoder, tmp_path, monkeypatch):
    step, calls = torch.optim.AdamW.step, []

    def out_of_memory(optimizer, closure=None):
        calls.append(optimizer)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory")
        return step(optimizer, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        pretrained(encoder, steps=6, checkpoint_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def losses_of(encoder, steps):
    return pretrained(encoder, steps=steps).losses["loss"]


def test_it_trains_under_inference_mode(encoder):
    with torch.inference_mode():
        last = pretrained(encoder)
    assert torch.equal(last.losses["loss"], pretrained(encoder).losses["loss"])


def test_workers_change_nothing(encoder):
    assert torch.equal(pretrained(encoder, workers=2).losses["loss"], pretrained(encoder).losses["loss"])


def test_shares_of_a_batch_are_the_batch(encoder):
    names = nameable_ids(torch.arange(len(encoder.table())))
    batches = [_CaptionBatches(encoder, WorldCaptions(), names, settings(), *part) for part in ((0, 6), (0, 3), (3, 3))]
    whole, *parts = [one[5] for one in batches]
    assert torch.equal(whole.masked.ids, torch.cat([part.masked.ids for part in parts]))
    assert torch.equal(whole.hidden, torch.cat([part.hidden for part in parts]))
    assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))


def test_a_batch_that_cannot_be_shared_is_an_error(encoder):
    with pytest.raises(ValueError, match="evenly"):
        next(pretrain_contextualizer(encoder, WorldCaptions(), settings(), processes=Processes(0, 4)))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_two_processes_of_accelerate_do_what_one_does(tmp_path):
    # accelerate's `--cpu` starts several processes through MPI alone; `--multi_gpu` starts them with torch's launcher,
    # and with `cpu=True` they talk through gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(free_port())]
    child = [str(HERE / "pretrain_child.py"), str(tmp_path), *MODES]
    done = subprocess.run([*launch, *child], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for mode in MODES:
        pretrain_alone(tmp_path, mode)
        one = load_file(tmp_path / f"{mode}_rank0_of_1.safetensors")
        ranks = [load_file(tmp_path / f"{mode}_rank{rank}_of_2.safetensors") for rank in range(2)]
        for name, value in one.items():
            assert torch.equal(ranks[0][name], ranks[1][name])
            torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-6)


def test_a_sparse_vocabulary_has_the_tokens_of_the_captions_and_guesses_only_them(encoder):
    captions = ListedCaptions(tuple(f"a dog number {n} in the snow" for n in range(60)))
    named = used_tokens(encoder, captions, 30, 0)
    assert {encoder.bos, encoder.eos, *encoder.tokenize("a dog in the snow")} <= set(named)
    last = pretrained(encoder, captions, vocabulary_captions=30)
    assert last.contextualizer.classes < len(encoder.table())
    assert last.contextualizer.sparse
    assert torch.isfinite(last.losses["loss"]).all()


def test_held_out_guesses_beat_both_floors_only_when_there_is_something_to_guess(encoder):
    # The last word says the first and nothing else does: only who reads the context is right more than half the time.
    texts = [f"{first} {n} {first}" for first in ("snow", "beach") for n in range(400)]
    last = pretrained(encoder, ListedCaptions(tuple(texts)), steps=150, batch=24, rho=0.3, held_out=200)
    found = last.held_out
    assert found.captions == 200
    assert found.masked > 100
    assert found.right > 1.2 * found.shuffled_context
    assert found.right > 1.2 * found.most_frequent
    figures = last.contextualizer.provenance["held_out"]
    assert figures["accuracy"] == pytest.approx(found.right / found.masked)
    low, high = figures["accuracy_interval"]
    assert low < figures["accuracy"] < high


def test_an_untrained_contextualizer_is_no_better_than_chance(encoder):
    untrained = pretrained(encoder, steps=1, learning_rate=1e-9).contextualizer
    training, unseen = (SplitCaptions(WorldCaptions(), held_out=held_out) for held_out in (False, True))
    asked = Questions.of(encoder, untrained, unseen, 50, rho=0.3, seed=0)
    found = held_out_accuracy(encoder, untrained, training, asked, rho=0.3)
    assert found.accuracy < 0.2
    assert found == held_out_accuracy(encoder, untrained, training, asked, rho=0.3)


@pytest.mark.parametrize(
    ("captions", "wrong", "says"),
    [
        (tuple(f"a dog number {n}" for n in range(400) if not is_held_out(f"a dog number {n}")), {}, "mix built-in"),
        (("a dog",) * 5, {}, "mix built-in"),
        (tuple(f"dog {n}" for n in range(200)), {"rho": 1e-6, "held_out": 10}, "mask rate"),
    ],
)
def test_a_lack_of_held_out_captions_is_found_before_the_training(encoder, captions, wrong, says):
    run = pretrain_contextualizer(encoder, ListedCaptions(captions), settings(**{"held_out": 20, **wrong}))
    with pytest.raises(ValueError, match=says):
        next(run)


def test_shuffling_keeps_the_masks_the_specials_and_the_tokens_as_a_whole(encoder):
    names = nameable_ids(torch.arange(len(encoder.table())))
    rows = [caption_row(encoder, text, names) for text in ("a dog in the snow", "one red ball", "my cat and a fish")]
    batch = mask_rows(rows, torch.rand((3, encoder.max_length), generator=torch.Generator().manual_seed(0)), 0.2)
    ids = shuffled_context(rows, batch, torch.Generator().manual_seed(1))
    fixed = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    fixed[batch.masked] = True
    for row, one in enumerate(rows):
        fixed[row * encoder.max_length] = True
        fixed[row * encoder.max_length + one.end : (row + 1) * encoder.max_length] = True
    assert torch.equal(ids.flatten()[fixed], batch.ids.flatten()[fixed])
    assert torch.equal(ids.flatten().sort().values, batch.ids.flatten().sort().values)
    assert not torch.equal(ids, batch.ids)


def test_no_held_out_caption_is_ever_trained_on(encoder):
    generator = torch.Generator().manual_seed(0)
    trained = SplitCaptions(WorldCaptions(), held_out=False).draw(300, generator)
    tested = SplitCaptions(WorldCaptions(), held_out=True).draw(20, generator)
    assert not any(is_held_out(text) for text in trained)
    assert all(is_held_out(text.upper()) for text in tested)


def test_a_loss_that_explodes_stops_the_run(encoder):
    with pytest.raises(RuntimeError, match="smaller learning rate"):
        pretrained(encoder, steps=8, learning_rate=1e30)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"rho": 0.0}, {"mode": "all"}, {"preset": "huge"}, {"learning_rate": 0.0}, {"workers": -1}],
)
def test_settings_that_mean_nothing_are_errors(wrong):
    with pytest.raises(ValueError, match=r"at least|rho|mode|preset|negative"):
        settings(**wrong)
