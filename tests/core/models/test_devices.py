"""On a GPU, as far as that can be told without one: nothing lies on the wrong device, and no step waits for it."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parents[1] / "training"))

from simulated_cuda import CUDA, OnCuda, simulated_cuda
from small_pipelines import pipeline
from training_child import TINY_METHODS
from tuning_parts import pictures, settings, source, vision_tower

from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.dual_path import DualPath, DualPathModel
from contextual_inversion.core.models.image_encoder import ImageEncoder
from contextual_inversion.core.models.low_rank import LowRankDelta
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.networks.contextualizer import (
    Contextualizer,
    ContextualizerShape,
    EncoderIdentity,
)
from contextual_inversion.core.prompts.rich import ListedPrompts
from contextual_inversion.core.training.contextualizer.pretraining import (
    PretrainSettings,
    pretrain_contextualizer,
)
from contextual_inversion.core.training.one_picture.predict import predict_concept
from contextual_inversion.core.training.one_picture.pretraining import pretrain_encoder
from contextual_inversion.core.training.one_picture.tuning import TuneSettings, tune
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.regularizers.mlm import MLMRegularizer
from contextual_inversion.core.training.regularizers.prior import PriorPreservation
from contextual_inversion.core.training.run.events import Step
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train
from contextual_inversion.core.world.sources import WorldCaptions

SIZE = ImageSize(64, 64)
PROMPTS = ("a {} in the snow", "the {} at sea")
TRAININGS = {
    "sd1": {**TINY_METHODS["second stage, rank by timestep"], "gradient_checkpointing": True},
    "sd2": {"method": "ti", "norm_mode": "spherical", "min_snr_gamma": 5.0},
    "sdxl": {"method": "xti"},
}


def model(kind, device):
    return DiffusersModel.from_pipeline(pipeline(kind), device=device)


def images(device):
    return ImageEncoder(vision_tower().to(device), size=32)


def regularizers(subject):
    return [
        CoReRegularizer(PROMPTS, embedding_weight=0.1, attention_weight=1.0),
        MLMRegularizer(
            [contextualizer(encoder) for encoder in subject.text_encoders.values()],
            ListedPrompts(PROMPTS), weight=0.1, rho=0.9, batch=2, beside_class=False,
        ),
        PriorPreservation(pictures=2, batch=2, steps=2, resolution=64),
    ]  # fmt: skip


def contextualizer(encoder):
    named = {encoder.eos, *(token for prompt in PROMPTS for token in encoder.tokenize(prompt.replace("{}", "")))}
    torch.manual_seed(0)
    shape = ContextualizerShape(attentions=1, heads=2, hidden=1, positions=16)
    return Contextualizer(EncoderIdentity.of(encoder), shape, sorted(named))


def waiting_steps(events, waits):
    """The last event, and what waited for the device between the first step and the last, which reports."""
    seen = [(event, len(waits)) for event in events]
    steps = [count for event, count in seen if isinstance(event, Step)]
    return seen[-1][0], waits[steps[0] : steps[-2]]


def trained(kind, device, waits, **keywords):
    chosen = TrainSettings(
        class_word="dog", steps=3, batch=2, log_every=3, ema=0.9, resolution=64, templates=PROMPTS, **keywords
    )
    subject = model(kind, device)
    with train(subject, pictures(2), chosen, regularizers=regularizers(subject)) as run:
        return waiting_steps(run, waits)


def test_the_simulation_refuses_what_cuda_refuses():
    with simulated_cuda() as waits:
        here, there = torch.ones(3), torch.ones(3, device=CUDA)
        assert (there * 2).device == CUDA
        assert here.to(CUDA).device == CUDA
        assert float((there + torch.tensor(1.0)).sum()) == 6  # a single number may come along
        assert len(waits) == 1
        for wrong in (
            lambda: here + there,
            lambda: torch.stack([here.sum(), there.sum()]),
            lambda: here.index_select(0, torch.tensor([0], device=CUDA)),
            lambda: torch.nn.Linear(3, 3)(there),
            lambda: torch.randn(3, device=CUDA, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match=r"same device|generator"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        waits.clear()
        for waited in (there.cpu, there.tolist, there.nonzero, lambda: there[there > 0], lambda: bool(there.all())):
            waited()
        assert len(waits) == 5
    assert isinstance(there, OnCuda)
    assert not isinstance(there.cpu(), OnCuda)


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_lies_on_the_device_and_no_step_waits_for_it(kind):
    expected, _ = trained(kind, "cpu", [], **TRAININGS[kind])
    with simulated_cuda() as waits:
        found, waited = trained(kind, CUDA, waits, **TRAININGS[kind])
    assert waited == []
    for name, value in expected.concept.vectors.items():
        assert found.concept.vectors[name].device == torch.device("cpu")
        assert torch.equal(found.concept.vectors[name], value)


def test_a_tuning_encoder_lies_on_the_device_and_tuning_does_not_wait_for_it():
    with simulated_cuda() as waits:
        subject, looking = model("sd1", CUDA), images(CUDA)
        *_, last = pretrain_encoder(subject, looking, source(), settings(steps=2, timesteps=(300,)))
        concept = predict_concept(subject, looking, last.encoder, pictures(1)[0])
        for alpha in (None, 0.5):
            chosen = TuneSettings(steps=3, batch=2, alpha=alpha)
            events = tune(subject, looking, last.encoder, pictures(1)[0], chosen, predicted=concept)
            tuned, waited = waiting_steps(events, waits)
            assert waited == []
            kept = [*tuned.concept.vectors.values(), *tuned.concept.lora.values()]
            assert {value.device for value in kept} == {torch.device("cpu")}


def test_a_contextualizer_is_pretrained_on_the_device_without_waiting_for_it():
    chosen = PretrainSettings(steps=3, batch=2, preset="tiny", held_out=4, log_every=3, vocabulary_captions=100)
    with simulated_cuda() as waits:
        subject = model("sd1", CUDA)
        with subject.session():
            events = pretrain_contextualizer(subject.text_encoders["clip_l"], WorldCaptions(), chosen)
            last, waited = waiting_steps(events, waits)
    assert waited == []
    assert last.held_out.masked > 0


def picture(device):
    """Of two paths, sampled and watched."""
    subject, recorder = model("sdxl", device), AttentionRecorder()
    with subject.session(), torch.no_grad():
        hard, soft, empty = (
            subject.conditioning(encode_prompts(subject, [text]), SIZE) for text in ("a dog", "a cat", "")
        )
        names = [name for name in subject.linear_layers() if name.endswith(".attn2.to_k")]
        generator = torch.Generator().manual_seed(0)
        deltas = {name: LowRankDelta.initial(subject.linear_layers()[name], 2, generator=generator) for name in names}
        path = DualPath(soft, deltas, 0.4, rows=slice(1, 2))
        probe = recorder.sampling(subject.cross_attention_layers(), (8, 8))
        latents = sample(
            DualPathModel(subject, path), hard, empty, shape=(1, 4, 8, 8), steps=3, eta=0.5, seed=0, probe=probe
        )
        recorder.finish()
        return subject.to_images(latents).cpu(), recorder.maps().values


def test_two_paths_are_sampled_and_watched_on_the_device():
    expected, maps = picture("cpu")
    with simulated_cuda():
        found, seen = picture(CUDA)
    assert torch.equal(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(seen, maps, strict=True))
