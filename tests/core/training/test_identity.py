"""What a run says of itself: everything that decides its numbers, its previews, and where its concept comes from."""

import json

import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel, pictures

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.run.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from contextual_inversion.core.training.run.events import Preview
from contextual_inversion.core.training.settings import Augmentation, TrainSettings
from contextual_inversion.core.training.trainer import train


def identity(model=None, images=None, masks=None, regularizers=(), initial=None, **keywords):
    settings = TrainSettings(**{"class_word": "dog", "resolution": 64, **keywords})
    given = {"masks": masks, "regularizers": regularizers, "initial": initial}
    with train(model or StubModel(), pictures() if images is None else images, settings, **given) as run:
        next(run)
        return run.prepared.identity


def changed(part, rows=slice(None)):
    model = StubModel()
    part(model).data[rows] += 0.5
    return model


def in_half():
    model = StubModel()
    model.dtype = torch.bfloat16
    return model


def word(value):
    return Concept("thing", "dog", {"clip_l": torch.full((1, 32), value)})


def core(weight):
    return CoReRegularizer(["a {}"], embedding_weight=weight)


def test_whatever_decides_the_numbers_is_in_the_identity():
    plain = identity()
    assert identity() == plain == json.loads(json.dumps(plain))
    unused = next(token for token in range(9) if token not in StubModel().encoders[0].tokenize("dog"))
    masks = torch.ones(3, 64, 64)
    masks[0, 0] = 0
    others = [
        identity(changed(lambda model: model.conv_in.weight)),
        identity(changed(lambda model: model.encoders[0].tokens.weight, unused)),
        identity(in_half()),
        identity(images=pictures(seed=6)),
        identity(masks=masks),
        identity(regularizers=[core(1.0)]),
        identity(regularizers=[core(2.0)]),
        identity(initial=word(1.0)),
        identity(initial=word(2.0)),
        identity(initial=word(1.0), method="refine"),
        identity(initial=word(2.0), method="refine"),
        identity(initial=word(2.0), method="refine", only_layers=("to_v",)),
        identity(resolution=128),
        identity(augmentation=Augmentation(flip=0.5, bank=1)),
        identity(augmentation=Augmentation(flip=0.6, bank=1)),
        identity(seed=1),
        identity(optimizer_options={"weight_decay": 0.5}),
    ]
    every = [plain, *others]
    assert all(one != other for number, one in enumerate(every) for other in every[:number])


def test_checkpointed_layers_are_asked_of_the_models_session(monkeypatch):
    asked, session = [], StubModel.session
    monkeypatch.setattr(StubModel, "session", lambda self, **given: asked.append(given) or session(self, **given))
    assert identity(gradient_checkpointing=True) == identity()
    assert asked == [{"gradient_checkpointing": True}, {"gradient_checkpointing": False}]


def test_a_model_in_half_precision_is_not_taken_for_a_full_one():
    with pytest.raises(ValueError, match="load it in float32"):
        identity(in_half(), precision="fp32")


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("method", ["ti", "xti", "custom-diffusion"])
def test_a_preview_is_what_the_model_samples_at_that_step(method, step):
    model, size = StubModel(), ImageSize(64, 64)
    settings = TrainSettings(
        class_word="dog", steps=4, batch=2, method=method, preview_every=2, preview_prompt="the {} at sea",
        resolution=64, preview_seed=5, preview_steps=3, preview_guidance=2.5,
    )  # fmt: skip
    with train(model, pictures(), settings) as run:
        shown = next(event for event in run if isinstance(event, Preview) and event.step == step)
        with torch.no_grad():
            word = run.prepared.prompts.with_concept(["the {} at sea"])
            given = [model.conditioning(one, size) for one in (word, encode_prompts(model, [""]))]
            latents = sample(model, *given, shape=(1, 4, 8, 8), steps=3, guidance=2.5, seed=5)
            expected = (model.to_images(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert shown.prompt == "the {} at sea"
    equal_but_for_rounding(shown.images, expected)


def test_the_concept_keeps_the_mean_of_the_last_tenth_of_its_losses(run):
    last = run(StubModel(), steps=20, log_every=20)
    assert last.concept.provenance["losses"]["diffusion"] == pytest.approx(float(last.losses["diffusion"][-2:].mean()))


def test_a_resumed_run_counts_what_was_spent_before(tmp_path, run):
    run(StubModel(), steps=4, checkpoint_dir=tmp_path, checkpoint_every=2)
    (tmp_path / "step_000004.safetensors").unlink()
    before = load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 2, Checkpoint(before.identity, before.state, before.losses, {"seconds": 1e6}))
    assert run(StubModel(), steps=4, resume=tmp_path).seconds > 1e6
