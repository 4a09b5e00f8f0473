"""Whether a MODEL, CLIP, VAE and CONCEPTs of such a family belong together, and what can be trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....core.concept import Concept
from ....core.files import check_widths
from ....core.training.methods import method_called
from .encoders import family_widths
from .facts import NAMES, Family, family_of

OF_ITS_OWN = "use the one that belongs to the model"


def require_family(model: Any, clip: Any = None, vae: Any = None, concepts: Sequence[Concept] = ()) -> Family:
    """The family of a MODEL. Raises ValueError that names both where what a node was given is not of one kind of
    model. Nothing is loaded."""
    family, base = family_of(model), model.model
    if family is None:
        raise ValueError(f"{type(base).__name__} is none of the models that this pack knows: {NAMES}")
    _require_text_alone(family, base)
    wanted, given = int(base.latent_format.latent_channels), getattr(vae, "latent_channels", None)
    if given not in (None, wanted):
        raise ValueError(
            f"the VAE makes latents of {given} channels and {family.title} takes {wanted}: they do not fit; "
            f"{OF_ITS_OWN}"
        )
    if clip is not None:
        for concept in concepts:
            check_widths(concept, family_widths(clip))
    for concept in concepts:
        if concept.layer_vectors:
            raise ValueError(
                f"{concept.name!r} has a vector for every cross-attention layer of Stable Diffusion, and "
                f"{family.title} has no such layers: it was trained on another kind of model."
            )
    return family


def _require_text_alone(family: Family, base: Any) -> None:
    """Raises ValueError for models of the family that edit or fill in a picture, and take one too."""
    denoiser, config = base.diffusion_model, base.model_config.unet_config
    size = getattr(denoiser, "patch_size", 1)
    taken = getattr(getattr(denoiser, "img_in", None), "in_features", None)
    if type(base).__name__ == "Flux" and taken is not None and taken > config["out_channels"] * size * size:
        raise ValueError(f"this {family.title} takes a picture beside the text (Fill, Canny, Depth, ...); use one that "
                         "draws from text alone")  # fmt: skip
    frames = getattr(denoiser, "patch_embedding", None)
    if type(base).__name__ == "WAN21" and frames.in_channels > base.latent_format.latent_channels:
        raise ValueError(f"this {family.title} makes videos of a picture, or is steered by one; use one that draws "
                         "from text alone (T2V)")  # fmt: skip


def require_method(family: Family, name: str) -> None:
    """Raises ValueError for a method that means nothing to a transformer, or needs more than people have."""
    method = method_called(name)
    instead = "choose textual inversion, DreamBooth as a LoRA, or word and LoRA together"
    if method.learns_copies:
        raise ValueError(f"{method.title}: {family.title} has no cross-attention layers to tell apart; {instead}")
    if method.unet == "keys and values":
        raise ValueError(f"{method.title}: the attention of {family.title} reads text and image together; {instead}")
    if method.unet == "all":
        raise ValueError(f"{method.title}: {family.title} is too large for a change of every weight; {instead}")
