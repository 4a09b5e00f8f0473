"""The candidate VAE inside ComfyUI's own TAESD class: the same latents and pictures as in diffusers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.core.models.tiny import config
from contextual_inversion.core.models.tiny.weights import read_tensors
from contextual_inversion.core.world.render import concept_images


def test_candidate_is_the_same_in_both_programs(comfyui: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.taesd.taesd

    from contextual_inversion.nodes.comfy import demo_model
    from contextual_inversion.pretraining.forms import FORMS

    monkeypatch.setattr(demo_model, "read_weights", lambda part, form: read_tensors(FORMS["candidate"].path(part)))
    monkeypatch.setattr(config, "VAE", config.VAE_CANDIDATE)
    ours = FORMS["candidate"].load("vae")
    images = torch.from_numpy(concept_images("goblet", 2)[0]).float() / 255
    with torch.inference_mode():
        vae = demo_model.load_vae()
        assert type(vae.first_stage_model) is comfy.taesd.taesd.TAESD
        theirs = vae.encode(images)
        latents = ours.encode(images.movedim(-1, 1) * 2 - 1).latents
        assert vae.latent_channels == config.VAE_CANDIDATE["latent_channels"]
        assert torch.allclose(latents, theirs, atol=1e-4)
        pictures = (ours.decode(latents).sample.clamp(-1, 1) / 2 + 0.5).movedim(1, -1)
        assert torch.allclose(pictures, vae.decode(latents), atol=1e-4)
