"""Laws of the training loop, on a model of milliseconds."""

import copy
import math
import sys

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import equal_but_for_rounding
from stub_model import StubModel, pictures

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files.errors import LearnedNothingError
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.regularizers.nearest_word import NearestTokenRegularizer
from contextual_inversion.core.training.regularizers.seam import LossTerm, Terms
from contextual_inversion.core.training.run.checkpoint import load_checkpoint
from contextual_inversion.core.training.run.events import Finished, Preview, Started, Step
from contextual_inversion.core.training.settings import Augmentation, TrainSettings, optimizer_class
from contextual_inversion.core.training.trainer import NonFiniteLossError, train

PROMPTS = ("a {} in the snow", "a red {} at sea", "drawing of a {}")


class Pull:
    """A regularizer of the tests: the squared norm of the concept's encoding under one of its prompts."""

    def __init__(self, weight, name="pull"):
        self.weight, self.name, self.drawn = weight, name, []

    def prepare(self, model, class_word, rows):
        pass

    def __call__(self, step):
        choice = int(torch.randint(len(PROMPTS), (), generator=step.generator))
        self.drawn.append(choice)
        encodings = step.encode_concept([PROMPTS[choice]])
        value = sum(encoding.tokens[:, -1].square().mean() for encoding in encodings.values())
        return Terms({f"{self.name}/norm": LossTerm(value, self.weight)})

    def state(self):
        return {"name": self.name, "weight": self.weight}


def vectors(finished):
    return torch.cat([value.flatten() for value in finished.concept.vectors.values()])


def gradient(model, regularizers=(), **keywords):
    """The gradient of the first step, and its losses."""
    settings = TrainSettings(**{"class_word": "dog", "batch": 4, "log_every": 1, "steps": 1, **keywords})
    with train(model, pictures(), settings, regularizers=regularizers) as run:
        next(run)
        losses, _ = run.prepared.objective.gather(0, run.learner.backward)
        return torch.cat([value.grad.flatten() for value in run.learner.vectors.values()]), losses


def test_the_seed_decides_everything(run):
    torch.manual_seed(1)
    first = run(StubModel(), regularizers=[Pull(0.1)], augmentation=Augmentation(bank=2), seed=3)
    torch.manual_seed(2)
    again = run(StubModel(), regularizers=[Pull(0.1)], augmentation=Augmentation(bank=2), seed=3)
    other = run(StubModel(), regularizers=[Pull(0.1)], augmentation=Augmentation(bank=2), seed=4)
    assert torch.equal(vectors(first), vectors(again))
    assert torch.equal(first.losses["diffusion"], again.losses["diffusion"])
    assert not torch.equal(vectors(first), vectors(other))


@pytest.mark.parametrize("encoders", [1, 2])
def test_only_the_concept_is_trained(run, encoders):
    model = StubModel(encoders=encoders)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finished = run(model, regularizers=[CoReRegularizer(PROMPTS, embedding_weight=1, attention_weight=1)], vectors=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert {name: tuple(value.shape) for name, value in finished.concept.vectors.items()} == {
        name: (2, encoder.width) for name, encoder in model.text_encoders.items()
    }


def test_it_learns(run):
    # The same latents, noise and timesteps before and after: a real fall, not luck of the draw.
    model = StubModel()
    finished = run(model, steps=60, batch=6, learning_rate=0.05)
    _, before = gradient(model, batch=64)
    settings = TrainSettings(class_word="dog", batch=64, steps=1)
    with train(model, pictures(), settings, initial=finished.concept) as again:
        next(again)
        after, _ = again.prepared.objective.gather(0, again.learner.backward)
    assert after["diffusion"] < before["diffusion"]


@pytest.mark.parametrize("nothing", [[], [CoReRegularizer(PROMPTS, embedding_weight=0, attention_weight=0)], [Pull(0)]])
def test_weight_zero_is_plain_textual_inversion_bit_by_bit(run, nothing):
    assert torch.equal(vectors(run(StubModel())), vectors(run(StubModel(), regularizers=nothing)))


@hypothesis.settings(max_examples=8)
@given(weights=st.permutations([0.5, 0.03, 2.0]), seed=st.integers(0, 2**31))
def test_any_list_of_regularizers_adds_up(weights, seed):
    model = StubModel()
    parts = [Pull(weight, f"pull {weight}") for weight in weights]
    parts.append(CoReRegularizer(PROMPTS, embedding_weight=0.3, attention_weight=7.0))
    parts.append(NearestTokenRegularizer(weight=0.3, norm_weight=0.02, neighbours=4, words=8))
    plain, losses = gradient(model, seed=seed)
    together, all_losses = gradient(model, parts, seed=seed)
    single = [gradient(model, [part], seed=seed)[0] - plain for part in parts]
    # Differences round as the gradients do whose differences they are.
    equal_but_for_rounding(together, plain + sum(single))
    # Joining passes into one batch changes the order of a sum, hence rounding, and nothing else.
    torch.testing.assert_close(all_losses["diffusion"], losses["diffusion"])


def test_order_and_company_do_not_change_what_a_regularizer_draws(run):
    alone, first, last = Pull(0.1), Pull(0.1), Pull(0.1)
    run(StubModel(), regularizers=[alone])
    run(StubModel(), regularizers=[first, Pull(1.0, "other")])
    run(StubModel(), regularizers=[Pull(1.0, "other"), last])
    assert alone.drawn == first.drawn == last.drawn
    assert len(set(alone.drawn)) > 1


@pytest.mark.parametrize("split", [(6, 1), (3, 2), (1, 6)])
def test_accumulated_gradients_are_those_of_the_large_batch(split):
    batch, times = split
    keywords = {"min_snr_gamma": 5.0, "templates": ("a photo of a {}", "the {}")}
    core = CoReRegularizer(PROMPTS, embedding_weight=0.3, attention_weight=7.0)
    expected, whole = gradient(StubModel(), [core], batch=6, **keywords)
    found, losses = gradient(StubModel(), [core], batch=batch, gradient_accumulation=times, **keywords)
    equal_but_for_rounding(found, expected)
    for name, value in whole.items():
        torch.testing.assert_close(losses[name], value, atol=1e-9, rtol=1e-5)


def test_joint_and_separate_passes_agree():
    core = CoReRegularizer(PROMPTS, embedding_weight=0.3, attention_weight=7.0)
    joint, _ = gradient(StubModel(), [core], passes="joint")
    separate, _ = gradient(StubModel(), [core], passes="separate")
    equal_but_for_rounding(joint, separate)


def test_masked_pixels_teach_nothing():
    model, images = StubModel(), pictures()
    masks = torch.zeros(3, 64, 64)
    masks[:, :, 32:] = 1  # whole latent cells
    # The prediction sees all of z_t, so it is the target that has to be blind: another target there, same gradient.
    settings = TrainSettings(class_word="dog", batch=3, steps=1, resolution=64)

    def gradient_with(noise_change):
        with train(model, images, settings, masks=masks) as run:
            next(run)
            objective = run.prepared.objective
            predict = type(model).predict

            def shifted(latents, *rest):
                out = predict(model, latents, *rest)
                return out + noise_change * torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], dim=1)

            object.__setattr__(model, "predict", shifted)
            try:
                losses, _ = objective.gather(0, run.learner.backward)
            finally:
                object.__delattr__(model, "predict")
            return run.learner.vectors["clip_l"].grad.clone(), losses["diffusion"]

    for one, other in zip(gradient_with(0.0), gradient_with(100.0), strict=True):
        assert torch.equal(one, other)


def test_no_gradient_is_learned_nothing_in_spite_of_weight_decay(run):
    with pytest.raises(LearnedNothingError, match="length only"):
        run(StubModel(), diffusion_weight=0.0)


def test_an_empty_mask_is_named_before_anything_is_trained(run):
    masks, model = torch.ones(3, 64, 64), StubModel()
    masks[1] = 0
    with pytest.raises(ValueError, match="mask 2 is empty"):
        run(model, masks=masks)
    assert not model.predictions


def test_a_vector_that_did_not_move_is_an_error(run):
    with pytest.raises(LearnedNothingError, match="initial"):
        run(StubModel(), learning_rate=1e-30)


class Poison:
    name = "poison"

    def __init__(self, at, value=math.nan):
        self.at, self.value, self.steps = at, value, 0

    def prepare(self, model, class_word, rows):
        pass

    def __call__(self, step):
        encodings = step.encode_concept(["a {}"])
        good = encodings["clip_l"].tokens.mean()
        now, self.steps = self.steps, self.steps + 1
        return Terms({"poison/term": LossTerm(good * self.value if now == self.at else good * 0.0, 1.0)})

    def state(self):
        return {"name": self.name}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_vector(run, tmp_path, value, ema):
    keywords = {"steps": 9, "log_every": 9, "ema": ema}
    stopped = run(StubModel(), regularizers=[Poison(4, value)], checkpoint_dir=tmp_path, **keywords)
    assert stopped.step == 4
    assert "poison/term not finite at step 5" in stopped.stopped
    assert len(stopped.losses["diffusion"]) == 4
    good = run(StubModel(), regularizers=[Poison(99)], checkpoint_dir=tmp_path / "good", checkpoint_every=4, **keywords)
    assert torch.equal(good.losses["diffusion"][:4], stopped.losses["diffusion"])
    with train(
        StubModel(), pictures(), TrainSettings(class_word="dog", batch=3, **keywords), regularizers=[Poison(99)]
    ) as running:
        for event in running:
            if isinstance(event, Step) and event.step == 4:
                assert torch.equal(running.concept.vectors["clip_l"], stopped.concept.vectors["clip_l"])
                break
    assert load_checkpoint(tmp_path).state["done"] == 4


def test_a_first_step_that_is_not_finite_is_an_error(run):
    with pytest.raises(NonFiniteLossError, match="step 1, the first"):
        run(StubModel(), regularizers=[Poison(0)])


def test_half_precision_follows_full_precision(run):
    exact, half = run(StubModel(), steps=10), run(StubModel(), steps=10, precision="bf16")
    torch.testing.assert_close(half.losses["diffusion"], exact.losses["diffusion"], atol=0, rtol=0.02)
    assert half.concept.vectors["clip_l"].dtype == torch.float32
    assert not torch.equal(vectors(half), vectors(exact))


def test_an_overflow_lowers_the_loss_scale_and_moves_nothing():
    with train(StubModel(), pictures(), TrainSettings(class_word="dog", precision="fp16", steps=3)) as run:
        next(run)
        learner, start = run.learner, run.concept.vectors["clip_l"]
        scale = float(learner.scale.value)

        def step(gradient):
            learner.vectors["clip_l"].grad = torch.full_like(start, gradient)
            return bool(learner.step(torch.tensor(1.0)))

        assert not step(scale)  # a true gradient of 1: Adam's first step is the learning rate, plus weight decay
        before, state = run.concept.vectors["clip_l"], copy.deepcopy(learner.optimizer.state_dict()["state"])
        torch.testing.assert_close(start - before, 5e-3 + 5e-5 * start, rtol=1e-4, atol=0)
        assert not step(math.inf)
        assert float(learner.scale.value) == scale / 2
        assert torch.equal(run.concept.vectors["clip_l"], before)
        after = learner.optimizer.state_dict()["state"]
        assert all(torch.equal(after[0][key], value) for key, value in state[0].items())
        assert not step(scale / 2)
        torch.testing.assert_close(before - run.concept.vectors["clip_l"], 5e-3 + 5e-5 * before, rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["core_window", "fixed_mean", "spherical", "dti"])
def test_norm_modes_hold_the_norm(mode):
    settings = TrainSettings(class_word="dog and cat", vectors=2, steps=20, batch=2, learning_rate=0.05, norm_mode=mode)
    norms = {}
    with train(StubModel(), pictures(), settings) as run:
        for event in run:
            if isinstance(event, Started | Step):
                step = event.first_step if isinstance(event, Started) else event.step
                norms[step] = run.concept.vectors["clip_l"].norm(dim=1)
    held = range(8, 13) if mode == "core_window" else range(21)
    for step in held:
        torch.testing.assert_close(norms[step], norms[held[0]], rtol=1e-6, atol=0)
    if mode == "core_window":
        assert not torch.allclose(norms[7], norms[8], rtol=1e-5)
        assert not torch.allclose(norms[13], norms[12], rtol=1e-5)
    else:
        table = StubModel().text_encoders["clip_l"].table()
        expected = table[: len(table) - 2].norm(dim=1).mean()
        torch.testing.assert_close(norms[0], expected.expand(2), rtol=1e-6, atol=0)


def test_the_class_word_starts_the_vectors():
    model = StubModel()
    encoder = model.text_encoders["clip_l"]
    tokens = encoder.tokenize("golden retriever")
    assert len(tokens) == 3  # "retriever" is two
    for count in (1, 2, 3, 5):
        with train(model, pictures(), TrainSettings(class_word="golden retriever", vectors=count)) as run:
            next(run)
            start = run.concept.vectors["clip_l"]
        assert torch.equal(start, encoder.table()[[tokens[index % 3] for index in range(count)]])


def test_a_concept_can_be_continued_and_has_to_fit(run):
    start = Concept("thing", "dog", {"clip_l": torch.randn(1, 32)})
    with train(StubModel(), pictures(), TrainSettings(class_word="dog"), initial=start) as running:
        next(running)
        assert torch.equal(running.concept.vectors["clip_l"], start.vectors["clip_l"])
    with pytest.raises(ValueError, match="this training needs"):
        run(StubModel(), initial=start, vectors=2)
    with pytest.raises(ValueError, match="this training needs"):
        run(StubModel(encoders=2), initial=start)


def test_average_is_the_running_mean_of_the_vectors():
    settings = TrainSettings(class_word="dog", steps=5, batch=2, ema=0.75)
    expected = None
    with train(StubModel(), pictures(), settings) as run:
        for event in run:
            now = run.learner.vectors["clip_l"].detach().clone()
            if isinstance(event, Started):
                expected = now
            elif isinstance(event, Step):
                expected = 0.75 * expected + 0.25 * now
    torch.testing.assert_close(run.concept.vectors["clip_l"], expected)


def test_events_come_in_order_and_losses_are_whole():
    settings = TrainSettings(
        class_word="dog",
        steps=7,
        batch=2,
        log_every=3,
        preview_every=5,
        preview_steps=2,
        preview_prompt="a {} at sea",
        resolution=64,
    )
    with train(StubModel(encoders=2), pictures(), settings) as run:
        events = list(run)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == list(range(1, 8))
    expected = [None, None, 3, None, 2, 1, 1]  # every third, before the preview, and the last
    assert [None if event.losses is None else len(event.losses["diffusion"]) for event in steps] == expected
    joined = torch.cat([event.losses["diffusion"] for event in steps if event.losses])
    assert torch.equal(joined, events[-1].losses["diffusion"])
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == [0, 5, 7], "before the first step, when due, and at the end"
    for preview in previews:
        assert tuple(preview.images.shape) == (1, 64, 64, 3)
        assert 0 <= float(preview.images.min()) < float(preview.images.max()) <= 1


@pytest.mark.parametrize(
    ("every", "stop", "expected"), [(0, 3, []), (2, 3, [0, 2, 3]), (2, 4, [0, 2, 4]), (9, 1, [0, 1])]
)
def test_a_stopped_run_is_pictured_where_it_stopped_and_once(every, stop, expected):
    """Where nobody wants pictures there are none."""
    settings = TrainSettings(class_word="dog", steps=7, batch=2, preview_every=every, preview_steps=2, resolution=64)
    drawn = []
    with train(StubModel(), pictures(), settings) as run:
        for event in run:
            if isinstance(event, Preview):
                drawn.append(event.step)
            if isinstance(event, Step) and event.step == stop:
                run.stop()
    assert drawn == expected


def test_a_run_that_goes_on_is_not_pictured_before_it_and_a_finished_one_at_its_end(tmp_path):
    settings = TrainSettings(
        class_word="dog", steps=6, batch=2, preview_every=3, preview_steps=2, resolution=64,
        checkpoint_dir=tmp_path, checkpoint_every=2,
    )  # fmt: skip

    def drawn(stop: int | None = None, **options) -> list[int]:
        found = []
        with train(StubModel(), pictures(), settings, **options) as run:
            for event in run:
                found += [event.step] if isinstance(event, Preview) else []
                if isinstance(event, Step) and event.step == stop:
                    break
        return found

    assert drawn(stop=2) == [0]
    assert drawn(resume=tmp_path) == [3, 6]
    assert drawn(resume=tmp_path) == [6]


def test_previews_and_reports_change_no_bit(run):
    plain = run(StubModel(), log_every=6)
    watched = run(StubModel(), log_every=1, preview_every=2, preview_steps=2)
    assert torch.equal(vectors(plain), vectors(watched))


def test_it_trains_under_inference_mode_and_leaves_the_callers_mode_alone():
    with torch.inference_mode():
        images, model = pictures(), StubModel()  # inference tensors, as ComfyUI's nodes have
        for value in model.parameters():
            assert value.is_inference()
        images = images.clone()
    with torch.inference_mode(False):
        model = StubModel()
    with torch.inference_mode():
        settings = TrainSettings(class_word="dog", steps=3, batch=2, log_every=1)
        with train(model, images, settings, masks=torch.ones(3, 64, 64)) as run:
            for event in run:  # noqa: B007
                assert torch.is_inference_mode_enabled()
                assert not torch.is_grad_enabled()
        assert isinstance(event, Finished)
    assert not any(value.is_inference() for value in event.concept.vectors.values())


def test_no_step_waits_for_the_device(monkeypatch):
    """Anything that would make the host wait raises inside a step; PyTorch's optimizers may read their CPU counters."""
    core = CoReRegularizer(PROMPTS, embedding_weight=0.3, attention_weight=7.0)
    settings = TrainSettings(
        class_word="dog", steps=30, batch=2, log_every=10, norm_mode="spherical", ema=0.9, precision="bf16"
    )
    forbidden = ("item", "cpu", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")
    armed = False

    def guard(name):
        original = getattr(torch.Tensor, name)

        def method(self, *arguments, **keywords):
            frame = sys._getframe(1)
            by_design = ("draw_step", "drawn_rows", "sample_order", "generator_for")  # CPU numbers
            drawn = frame.f_code.co_name in by_design
            own = "torch/optim" in frame.f_code.co_filename.replace("\\", "/")
            regularizer = frame.f_code.co_filename.endswith("context.py") and self.grad_fn is None
            choice = regularizer and frame.f_code.co_name in ("__call__", "_turn") and self.dtype == torch.int64
            if armed and not (drawn or own or choice):
                raise AssertionError(f"{name} in {frame.f_code.co_filename}:{frame.f_lineno} waits for the device")
            return original(self, *arguments, **keywords)

        return method

    for name in forbidden:
        monkeypatch.setattr(torch.Tensor, name, guard(name))
    with train(StubModel(), pictures(), settings, regularizers=[core]) as run:
        for event in run:
            # Between a report and the step before the next one.
            armed = isinstance(event, Started | Step) and event.__dict__.get("step", 0) % 10 < 9
            if isinstance(event, Step) and event.losses is not None:
                armed = event.step < 30
        armed = False
    assert event.step == 30


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_word": " "}, "class word"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"optimizer": "LBFGS"}, "unknown optimizer"),
        ({"optimizer": "Optimizer"}, "unknown optimizer"),
        ({"schedule": "zigzag"}, "schedule"),
        ({"templates": ("a photo",)}, "template"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_settings_refuse_what_cannot_work(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**{"class_word": "dog", **wrong})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"optimizer_options": {"nonsense": 1}}, "does not take"),
        ({"resolution": 100}, "multiple of 64"),
        ({"images": torch.rand(2, 3, 64, 64)}, "height, width, 3"),
        ({"images": torch.rand(2, 64, 64, 3) * 255}, "values in 0 .. 1"),
        ({"masks": torch.ones(2, 64, 64)}, "as many masks"),
        ({"masks": torch.ones(3, 32, 64)}, "mask 1"),
        ({"images": []}, "at least one"),
        ({"preview_every": 4, "preview_prompt": "a {} " + "word " * 40}, "takes 42 tokens"),
        ({"templates": ("a {}", "a {} " + "word " * 40)}, "takes 42 tokens"),
    ],
)
def test_training_refuses_what_cannot_work_and_gives_the_model_back(run, keywords, message):
    model = StubModel()
    with pytest.raises(ValueError, match=message):
        run(model, **keywords)
    assert model.sessions == 0


def test_optimizers_are_torchs():
    assert optimizer_class("AdamW") is torch.optim.AdamW
