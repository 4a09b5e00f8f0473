"""`contextual-inversion predict PICTURE`: one picture becomes a word and a LoRA, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ..core.concept import Concept
from ..core.files import nameable, safe_name, save_bundle, save_embedding
from ..core.files.tuning_encoder import load_tuning_encoder
from ..core.models.tiny.weights import tiny_weights_path
from ..core.networks.tuning_encoder import TuningEncoder
from ..core.training.one_picture.predict import predict_concept
from .places import require_folder
from .pretrain_encoder import load_image_encoder
from .train import load_model, read_picture

BUNDLED = "tuning_encoder"


def main(
    picture: Annotated[Path, tyro.conf.Positional],
    *,
    name: str | None = None,
    class_word: str | None = None,
    model: Literal["tiny"] | Path = "tiny",
    encoder: Path | None = None,
    image_encoder: Path | None = None,
    out: Path = Path("out/predict"),
    device: str | None = None,
) -> dict[str, Any]:
    """Predict a word and a LoRA from one picture, without any training.

    Args:
        picture: The picture, of any size, with one subject.
        name: The new word and the name of its files; made from the picture's name if not given.
        class_word: The ordinary word for what is on it; the nearest word of the prediction if not given.
        model: "tiny" (bundled) or a folder of a diffusers pipeline.
        encoder: A tuning-encoder file of this model; the bundled one for the tiny model.
        image_encoder: A folder of the CLIP vision model that the encoder was trained with.
        out: Folder to write to.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
    """
    name = safe_name(name) if name else nameable(picture.stem)
    require_folder(out)
    network = chosen_encoder(model, encoder)
    subject = load_model(model, device)
    images = load_image_encoder(model, image_encoder, subject.device)
    concept = predict_concept(subject, images, network, read_picture(picture), name=name, class_word=class_word)
    return {**summary(concept), **save(concept, out)}


def chosen_encoder(model: str | Path, file: Path | None) -> TuningEncoder:
    """The encoder in `file`, or the bundled one of the tiny model.

    Raises FileNotFoundError that says how to get one where there is none.
    """
    if file is not None:
        return load_tuning_encoder(file)
    bundled = tiny_weights_path(BUNDLED)
    if model != "tiny" or not bundled.exists():
        raise FileNotFoundError("name a tuning-encoder of this model, --encoder; `pretrain-encoder` makes one")
    return load_tuning_encoder(bundled)


def summary(concept: Concept) -> dict[str, Any]:
    """What a person wants to know of a predicted word, as plain data."""
    return {
        "name": concept.name,
        "class_word": concept.class_word,
        "hard_token": concept.hard_token,
        "numbers": sum(value.numel() for value in (concept.lora or {}).values()),
        "predicted": concept.provenance.get("predicted"),
        "tuned": concept.provenance.get("tuned"),
        "norms": {encoder: float(value.norm(dim=-1).mean()) for encoder, value in concept.vectors.items()},
    }


def save(concept: Concept, out: Path) -> dict[str, str]:
    """Write the bundle and its embedding alone; both are replaced where they exist."""
    (out / "embeddings").mkdir(parents=True, exist_ok=True)
    bundle = save_bundle(concept, out, dtype=torch.float32, if_exists="replace")
    embedding = save_embedding(concept, out / "embeddings", if_exists="replace")
    print(f"<{concept.name}> is near {concept.hard_token!r}; wrote {bundle} and {embedding}")
    return {"bundle": str(bundle), "embedding": str(embedding)}
