"""`contextual-inversion predict PICTURE`: one picture becomes a word and a LoRA, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .loading import load_image_encoder, load_model, load_tuning_encoder
from .places import predicted_figures, require_folder, write_predicted
from .words import IfTaken, free_word


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
    if_taken: IfTaken = "number",
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
        if_taken: Where the output folder has a word of this name: write name_2, replace it, or refuse.
    """

    from ..core.files import nameable, safe_name
    from ..core.files.pictures import read_as_tensor
    from ..core.training.one_picture.predict import predict_concept

    name = safe_name(name) if name else nameable(picture.stem)
    require_folder(out)
    name = free_word(name, [out, out / "embeddings"], if_taken)
    network = load_tuning_encoder(model, encoder)
    subject = load_model(model, device)
    images = load_image_encoder(model, image_encoder, subject.device)
    concept = predict_concept(subject, images, network, read_as_tensor(picture), name=name, class_word=class_word)
    return {**predicted_figures(concept), **write_predicted(concept, out)}
