"""Where the autoencoder can be loaded again, a step that learns does without it, and the numbers are the same."""

import sys
import weakref
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from small_pipelines import pipeline

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.training.run.events import Finished, Preview, Step
from contextual_inversion.core.training.settings import Augmentation, TrainSettings
from contextual_inversion.core.training.trainer import train

PICTURES = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
SETTINGS = TrainSettings(
    "dog",
    steps=9,
    batch=1,
    resolution=64,
    log_every=1,
    preview_every=4,
    preview_steps=2,
    preview_prompt="a photo of a {}",
    augmentation=Augmentation(bank=16),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipeline")
    pipeline("sd1").save_pretrained(place)
    return place


def counted(model, monkeypatch):
    """Weak references to every autoencoder that the model has had, and whether one lived while a step learned."""
    lived, forward = [], model.unet.forward
    had = {}

    def noting(*arguments, **named):
        if torch.is_grad_enabled():
            lived.append(model._vae._module is not None)
        return forward(*arguments, **named)

    get = model._vae.get

    def getting():
        found = get()
        had[id(found)] = weakref.ref(found)
        return found

    monkeypatch.setattr(model.unet, "forward", noting)
    monkeypatch.setattr(model._vae, "get", getting)
    return had, lived


def test_no_step_holds_it_and_previews_and_later_steps_have_it_again(folder, monkeypatch):
    model, stays = (DiffusersModel.from_pipeline(folder) for _ in range(2))
    monkeypatch.setattr(stays._vae, "leave", lambda: None)
    had, lived = counted(model, monkeypatch)
    found = {}
    for name, one in (("leaves", model), ("stays", stays)):
        with train(one, PICTURES, SETTINGS) as run:
            found[name] = [event for event in run if isinstance(event, Step | Preview | Finished)]
        if name == "leaves":
            assert len(lived) == SETTINGS.steps
            assert not any(lived)
            assert len(had) > 3  # at the beginning, at steps 1, 3, 7, and for the pictures between them
    ours, theirs = (events[-1].concept.vectors["clip_l"] for events in found.values())
    assert torch.equal(ours, theirs)
    pictures = [[event.images for event in events if isinstance(event, Preview)] for events in found.values()]
    assert len(pictures[0]) == 4
    assert all(torch.equal(one, other) for one, other in zip(*pictures, strict=True))


def test_its_memory_is_free_when_it_leaves(folder):
    model = DiffusersModel.from_pipeline(folder)
    with model.session():
        latents = model.to_latents(PICTURES.movedim(-1, 1) * 2 - 1)
        gone = weakref.ref(model.vae)
        conditioning = torch.zeros(2, 77, model.unet.config.cross_attention_dim)
        from contextual_inversion.core.models.protocol import Conditioning

        with torch.no_grad():  # as in sampling, where a picture comes next
            model.predict(latents, torch.tensor([1, 2]), Conditioning(conditioning))
        assert gone() is not None
        model.predict(latents, torch.tensor([1, 2]), Conditioning(conditioning))
        assert gone() is None
    assert torch.equal(model.to_latents(PICTURES.movedim(-1, 1) * 2 - 1), latents)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_it_comes_from_the_same_file(tmp_path, variant):
    """A folder may hold both, and the pipeline's other parts decide which is taken."""
    made = pipeline("sd1")
    made.save_pretrained(tmp_path, variant="fp16")
    with torch.no_grad():
        for value in made.vae.parameters():
            value.add_(1)
    made.vae.save_pretrained(tmp_path / "vae")
    if variant is None:
        made.unet.save_pretrained(tmp_path / "unet")
        made.text_encoder.save_pretrained(tmp_path / "text_encoder")
    model = DiffusersModel.from_pipeline(tmp_path)
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    model._vae.leave()
    assert all(torch.equal(value, before[name]) for name, value in model.vae.state_dict().items())
