"""Which family of Stable Diffusion a model is of, as its text encoders tell, and what follows from that alone."""

from __future__ import annotations

from .protocol import TextToImageModel
from .tiny.config import IMAGE_SIZE

NARROWEST = 768
"""Width of the text encoders of Stable Diffusion 1, the narrowest of the family."""


def is_narrow(model: TextToImageModel) -> bool:
    """Whether all text encoders are narrower than any Stable Diffusion's, as the bundled tiny model's: then lambdas,
    rates and sizes that the papers chose do not carry over."""
    return max(encoder.width for encoder in model.text_encoders.values()) < NARROWEST


def is_flow(model: TextToImageModel) -> bool:
    """Whether the model is asked for the velocity of flow matching, as Flux and its kin."""
    return model.schedule.prediction_type == "flow"


def native_resolution(model: TextToImageModel) -> int | None:
    """Pixels a side that a family was trained at: 512, SD 2.x with v-prediction 768, SDXL 1024.

    A model that says it itself is believed. None for narrower text encoders than theirs, of which nothing is known.
    """
    own = getattr(model, "native_resolution", None)
    if own is not None:
        return int(own)
    if is_narrow(model):
        return None
    if "clip_g" in model.text_encoders:
        return 1024
    return 768 if "clip_h" in model.text_encoders and model.schedule.prediction_type == "v_prediction" else 512


def drawn_resolution(model: TextToImageModel) -> int:
    """Pixels a side to draw at where nobody says: the family's own, and the bundled tiny model's for narrow ones."""
    return native_resolution(model) or IMAGE_SIZE
