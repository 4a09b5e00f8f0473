"""Whether a MODEL, CLIP, VAE and CONCEPTs belong together: asked in one place, before any work, by every node."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_base
import comfy.model_sampling as sampling
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...core.concept import Concept
from ...core.files import check_widths
from ...core.models.requirements import SUPPORTED, ModelFacts, require_text, require_trainable
from .attention import cross_attention_layers
from .families.facts import NAMES, family_of
from .families.refused import why_refused
from .families.requirements import require_family
from .text import ENCODERS, text_widths
from .weights import base_weight

PURPOSES = {
    "SVD_img2vid": "makes videos of pictures",
    "SV3D_u": "makes videos of pictures",
    "SV3D_p": "makes videos of pictures",
    "Stable_Zero123": "turns pictures of things",
    "Lotus": "measures depth",
    "SD_X4Upscaler": "is the x4 upscaler, which enlarges pictures",
    "SD21UNCLIP": "is an unCLIP model, which takes a picture too",
}
"""UNets of Stable Diffusion's kind that draw nothing from text, by ComfyUI's name of the family."""
SCHEDULES = {
    sampling.CONST: "flow matching",
    sampling.EDM: "EDM",
    sampling.IMG_TO_IMG: "none at all",
}
UNTRAINED = (
    "The weights of the CLIP ({}) were never loaded: its layer norms are those of a new network. ComfyUI says "
    '"clip missing" in the log then. Prompts mean nothing to it; load another file of this text encoder.'
)


def require_unet(model: Any) -> Any:
    """The UNet of a MODEL. Raises ValueError that says what the model is where it is none of Stable Diffusion's."""
    base = model.model
    unet = getattr(base, "diffusion_model", None)
    if not isinstance(unet, UNetModel) or not cross_attention_layers(unet, {}):
        other = f"{type(base).__name__} is not a Stable Diffusion UNet and has no cross-attention to record or to train"
        raise ValueError(f"{why_refused(base) or other}; {SUPPORTED}, or {NAMES}")
    return unet


def facts_of(model: Any, clip: Any = None, vae: Any = None) -> ModelFacts:
    """What a model must be is asked of these. Raises ValueError where it is no UNet of Stable Diffusion."""
    unet, base = require_unet(model), model.model
    family = type(base).__name__
    is_xl = isinstance(base, comfy.model_base.SDXL | comfy.model_base.SDXLRefiner)
    other = unet.num_classes is not None and not is_xl
    return ModelFacts(
        name=family if type(base) is not comfy.model_base.BaseModel else type(base.model_config).__name__,
        in_channels=int(unet.in_channels),
        latent_channels=int(base.latent_format.latent_channels),
        context_width=context_width(unet, base),
        text_widths=None if clip is None else list(text_widths(clip).items()),
        vae_channels=getattr(vae, "latent_channels", None),
        schedule=schedule_family(model.get_model_object("model_sampling")),
        purpose=PURPOSES.get(family, "takes another condition beside text" if other else ""),
        refiner=isinstance(base, comfy.model_base.SDXLRefiner),
    )


def schedule_family(model_sampling: Any) -> str:
    """The family of a noise schedule that is not Stable Diffusion's (discrete; epsilon, v or x0), "" of one that is."""
    named = next((name for kind, name in SCHEDULES.items() if isinstance(model_sampling, kind)), None)
    if named is not None:
        return named
    usual = isinstance(model_sampling, sampling.EPS | sampling.V_PREDICTION | sampling.X0)
    discrete = isinstance(model_sampling, sampling.ModelSamplingDiscrete) and model_sampling.sigma_data == 1.0
    return "" if usual and discrete else type(model_sampling).__name__


def context_width(unet: Any, base: Any) -> int:
    """D, how many numbers a token has for the cross-attention of a UNet; where its layers have no projection of keys
    of their own, as the model's configuration has it."""
    keys = getattr(cross_attention_layers(unet, {})[0].module, "to_k", None)
    return int(base.model_config.unet_config["context_dim"] if keys is None else keys.weight.shape[1])


def require_fit(model: Any, clip: Any = None, vae: Any = None, concepts: Sequence[Concept] = ()) -> None:
    """Raises ValueError that names both where what a node was given is not of one kind of model. Nothing is loaded."""
    if family_of(model) is not None:
        require_family(model, clip, vae, concepts)
        return
    facts = facts_of(model, clip, vae)
    require_text(facts)
    facts.require_vae()
    for concept in concepts:
        if facts.text_widths is not None:
            check_widths(concept, dict(facts.text_widths))
        require_layers(concept, len(cross_attention_layers(model.model.diffusion_model, {})))


def require_trainable_model(model: Any, clip: Any, vae: Any) -> None:
    """Raises ValueError for a MODEL that cannot be trained on, and for a CLIP or VAE of another one."""
    require_trainable(facts_of(model, clip, vae))


def require_layers(concept: Concept, layers: int) -> None:
    """Raises ValueError where a concept has vectors for another number of cross-attention layers than `layers`."""
    wanted = {len(value) for value in (concept.layer_vectors or {}).values()}
    if wanted - {layers}:
        raise ValueError(
            f"{concept.name!r} has vectors for {'/'.join(map(str, sorted(wanted)))} cross-attention layers and this "
            f"model has {layers}: it was trained on another kind of model."
        )


def never_loaded(clip: Any) -> str:
    """What to say of a CLIP whose weights were never loaded, "" of any other: it is still what people asked for."""
    names = [name for name in ENCODERS if _is_new(clip, name)]
    return UNTRAINED.format(" and ".join(names)) if names else ""


def _is_new(clip: Any, name: str) -> bool:
    """Whether all layer norms of a text encoder are exactly what a new network has: ones and zeros."""
    text = getattr(getattr(getattr(clip.cond_stage_model, name, None), "transformer", None), "text_model", None)
    if text is None:
        return False
    norms = [key for key, part in text.named_modules() if isinstance(part, torch.nn.LayerNorm)]
    stem = f"{name}.transformer.text_model"
    for key in norms:
        for kind, new in (("weight", 1.0), ("bias", 0.0)):
            value = base_weight(clip.patcher, f"{stem}.{key}.{kind}")
            if value is None or value.device.type == "meta" or not bool((value.float() == new).all()):
                return False
    return bool(norms)


def warn_never_loaded(clip: Any) -> str:
    """`never_loaded`, in the log too."""
    said = never_loaded(clip)
    if said:
        logging.warning("Contextual Inversion: %s", said)
    return said
