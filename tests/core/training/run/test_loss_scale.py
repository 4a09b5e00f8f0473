"""Gradients through a UNet in fp16 arrive as those of float32 do, and an overflow costs nothing."""

import pytest
import torch
from tuning_parts import images, model, pictures, settings, source

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.training.one_picture import pretraining as encoder_pretraining
from contextual_inversion.core.training.one_picture import tuning
from contextual_inversion.core.training.one_picture.pretraining import pretrain_encoder
from contextual_inversion.core.training.one_picture.tuning import TuneSettings, tune
from contextual_inversion.core.training.run.draws import alpha_bar_on
from contextual_inversion.core.training.run.loss_scale import LossScale


def in_fp16():
    from small_pipelines import pipeline

    subject = DiffusersModel.from_pipeline(pipeline("sd1"))
    subject.unet.half()
    return subject


def encoder(subject, **keywords):
    *_, last = pretrain_encoder(
        subject, images(), source(), settings(steps=2, learning_rate=1e-2, ema=None, **keywords)
    )
    return last.encoder


@pytest.fixture
def of_a_large_picture(monkeypatch):
    """A loss whose gradient to each number is as small as with a picture of 1024 pixels a side."""
    for module in (tuning, encoder_pretraining):
        loss = module.diffusion_loss
        monkeypatch.setattr(module, "diffusion_loss", lambda *given, loss=loss: loss(*given) / 256)


def moves(subject, network, **keywords):
    """What the first step, which is as long in every direction, does to the LoRA."""
    options = TuneSettings(steps=1, batch=2, alpha=None, tuned="lora", lora_learning_rate=1e-3, **keywords)
    events = list(tune(subject, images(), network, pictures(1)[0], options, name="x"))
    start = tuning.predict_concept(subject, images(), network, pictures(1)[0], name="x")
    after = events[-1].concept
    return torch.cat([(after.lora[key] - start.lora[key]).flatten() for key in start.lora if "alpha" not in key])


def test_the_lora_is_tuned_in_fp16_as_in_fp32(of_a_large_picture):
    """Unscaled, half of its numbers would see no gradient at all."""
    network = encoder(model())
    exact, half = moves(model(), network), moves(in_fp16(), network)
    assert (exact.sign() == half.sign()).float().mean() > 0.97


def test_an_overflow_is_taken_again_and_loses_no_step(monkeypatch):
    network, subject, seen = encoder(model()), in_fp16(), []
    whole = moves(subject, network)
    unscale = LossScale.unscale

    def first_overflows(scale, gradients):
        if not seen:
            gradients[0].fill_(float("inf"))
        seen.append(float(scale.value))
        return unscale(scale, gradients)

    monkeypatch.setattr(LossScale, "unscale", first_overflows)
    again = moves(subject, network)
    assert seen == [2.0**16, 2.0**15]
    assert (again.sign() == whole.sign()).float().mean() > 0.97


def test_what_never_is_finite_is_said(monkeypatch):
    network, subject = encoder(model()), in_fp16()
    monkeypatch.setattr(LossScale, "unscale", lambda scale, _: scale.value.mul_(0.5) < 0)
    with pytest.raises(RuntimeError, match="not finite"):
        moves(subject, network)


def test_an_encoder_is_pretrained_in_fp16_as_in_fp32(of_a_large_picture):
    """The heads of B begin at zero, so their signs are what they were taught."""
    exact, half = (encoder(subject, contrastive=0.0, l2=0.0).hypernetwork.b_heads for subject in (model(), in_fp16()))
    for ours, theirs in zip(half, exact, strict=True):
        assert (ours.weight.sign() == theirs.weight.sign()).float().mean() > 0.97


def test_full_precision_knows_no_scale():
    scale = LossScale(torch.float32, torch.device("cpu"))
    loss, gradient = torch.tensor(2.0), torch.tensor([float("nan")])
    assert scale(loss) is loss
    assert bool(scale.unscale([gradient]))
    assert gradient.isnan().all()


def test_apples_devices_get_what_they_can_hold():
    class Schedule:
        class alpha_bar:
            to = staticmethod(lambda device, dtype: dtype)

    assert alpha_bar_on(Schedule, torch.device("mps")) == torch.float32
    assert alpha_bar_on(Schedule, torch.device("cpu")) == torch.float64
