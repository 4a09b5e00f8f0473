"""From one picture to a word in one pass of a tuning-encoder (METHODS.md 3.7 step 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...concept import Concept
from ...models.frozen import autograd, on_device
from ...models.image_encoder import ImageEncoder, ImageFeatures
from ...models.lora import to_lora
from ...models.low_rank import Delta, LowRankDelta
from ...models.protocol import ImageSize, TextToImageModel
from ...models.vocabulary import HardWords
from ...networks.tuning_encoder import Identity, TuningEncoder
from ...prompts.phrases import checked_phrase, require_tokens
from .footprint import Footprint
from .observer import Observer
from .square import square_picture


def predict_concept(
    model: TextToImageModel,
    images: ImageEncoder,
    encoder: TuningEncoder,
    picture: torch.Tensor,
    *,
    name: str = "concept",
    class_word: str | None = None,
) -> Concept:
    """The word for what is on `picture` ((H, W, 1, 3 or 4) in [0, 1], any size), as the encoder predicts it.

    The concept has one vector for each text encoder, a LoRA, and the nearest word as its hard token, which is its class
    word too unless one is given: nobody has to say what is on the picture. Raises ValueError for a picture that shows
    nothing, and where the encoder belongs to other models; the message names both.
    """
    require_fit(model, images, encoder)
    class_word = class_word_for(model, class_word)
    with autograd():
        footprint = Footprint(model.device)
        with model.session(), torch.no_grad(), on_device([encoder], model.device):
            latents, features = latents_and_features(model, images, picture, encoder.resolution)
            observer = Observer(model, ImageSize(encoder.resolution, encoder.resolution))
            found = encoder(observer.look(encoder, latents, features))
            deltas = {layer: LowRankDelta(a[0], b[0]) for layer, (a, b) in found.factors.items()}
            footprint.look()
        vectors = {key: value.detach().float().cpu().clone() for key, value in found.vectors.items()}
        provenance = {
            **origin(model, encoder),
            "recipe": "tuning-encoder",
            "steps": 0,
            "predicted": footprint.stop(),
        }
        return concept_of(model, encoder, vectors, deltas, name=name, class_word=class_word, provenance=provenance)


def require_fit(model: TextToImageModel, images: ImageEncoder, encoder: TuningEncoder) -> None:
    """Raises ValueError that names both where the encoder was trained on other models."""
    encoder.identity.require(Identity.of(model, images))


def latents_and_features(
    model: TextToImageModel, images: ImageEncoder, picture: torch.Tensor, side: int
) -> tuple[torch.Tensor, ImageFeatures]:
    """Latents (1, C, h, w) of a picture and what the image encoder sees in it, on the model's device."""
    square = square_picture(picture, side)
    features = images.features(square[None].to(images.device))
    return latents_of(model, square), features.to(model.device)


def class_word_for(model: TextToImageModel, class_word: str | None) -> str:
    """A class word that was given, "" where none was. Raises ValueError for one that the model cannot read."""
    if not (class_word or "").strip():
        return ""
    word = checked_phrase(class_word)
    require_tokens(model.text_encoders.values(), word)
    return word


def latents_of(model: TextToImageModel, square: torch.Tensor) -> torch.Tensor:
    """Latents (1, C, h, w) of a square picture (3, H, H) in [0, 1], on the model's device."""
    # Cloned: what came out of a model loaded in inference mode may not be kept for a backward pass.
    return model.to_latents(square[None].to(model.device) * 2 - 1).float().clone().to(model.device)


def origin(model: TextToImageModel, encoder: TuningEncoder) -> dict[str, Any]:
    """What a concept says about where it comes from (METHODS.md 3.8)."""
    return {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "text_encoders": {name: one.fingerprint for name, one in model.text_encoders.items()},
        "encoder": {
            "timesteps": list(encoder.timesteps),
            "rank": encoder.shape.preset.rank,
            "steps": encoder.provenance.get("steps"),
        },
        "resolution": encoder.resolution,
    }


def concept_of(
    model: TextToImageModel,
    encoder: TuningEncoder,
    vectors: Mapping[str, torch.Tensor],
    deltas: Mapping[str, Delta],
    *,
    name: str,
    class_word: str | None,
    provenance: Mapping[str, Any],
) -> Concept:
    """Vectors (1, d) and deltas as a concept with its hard token (METHODS.md 3.8)."""
    hard = " ".join(HardWords(model, encoder.known)(vectors))
    return Concept(
        name=name,
        class_word=class_word_for(model, class_word) or hard,
        vectors=vectors,
        lora=to_lora(model, deltas),
        hard_token=hard,
        provenance=provenance,
    )
