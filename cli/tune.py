"""`contextual-inversion tune PICTURE`: predict a word from one picture and tune it for a dozen steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..core.training.defaults import MOST_STEPS, Tuned
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
    predicted: Path | None = None,
    steps: int = MOST_STEPS,
    more_steps: bool = False,
    batch: int = 4,
    tuned: Tuned = "lora and vectors",
    lora_learning_rate: float | None = None,
    vector_learning_rate: float | None = None,
    contrastive: float | None = None,
    l2: float | None = None,
    alpha: float | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    out: Path = Path("out/tune"),
    device: str | None = None,
    if_taken: IfTaken = "number",
) -> dict[str, Any]:
    """Predict a word and a LoRA from one picture and tune both on it, for twelve steps at most.

    Args:
        picture: The picture, of any size, with one subject.
        name: The new word and the name of its files; made from the picture's name if not given.
        class_word: The ordinary word for what is on it; the nearest word of the prediction if not given.
        model: "tiny" (bundled) or a folder of a diffusers pipeline.
        encoder: A tuning-encoder file of this model; the bundled one for the tiny model.
        image_encoder: A folder of the CLIP vision model that the encoder was trained with.
        predicted: A bundle that `predict` wrote, to go on from.
        steps: Optimiser steps.
        more_steps: Allow more than twelve.
        batch: Noised copies of the picture a step.
        tuned: What moves.
        lora_learning_rate: Of the LoRA's factors.
        vector_learning_rate: Of the word's vectors.
        contrastive: lambda_c, weight of the contrastive loss.
        l2: lambda_2, weight of the vectors' squared length.
        alpha: Blend of the dual path; without it the soft path alone is tuned.
        seed: Of every random choice.
        gradient_checkpointing: Save memory, take longer.
        out: Folder to write to.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        if_taken: Where the output folder has a word of this name: write name_2, replace it, or refuse.
    """

    from ..core.files import load_concept, nameable, safe_name
    from ..core.files.pictures import read_as_tensor
    from ..core.training.one_picture.tuning import TuneSettings, tune
    from ..core.training.run.events import Finished, Step

    name = safe_name(name) if name else nameable(picture.stem)
    given = {
        "lora_learning_rate": lora_learning_rate,
        "vector_learning_rate": vector_learning_rate,
        "contrastive": contrastive,
        "l2": l2,
    }
    settings = TuneSettings(
        steps=steps,
        batch=batch,
        tuned=tuned,
        alpha=alpha,
        seed=seed,
        more_steps=more_steps,
        gradient_checkpointing=gradient_checkpointing,
        **{key: value for key, value in given.items() if value is not None},
    )
    require_folder(out)
    name = free_word(name, [out, out / "embeddings"], if_taken)
    network = load_tuning_encoder(model, encoder)
    subject = load_model(model, device)
    images = load_image_encoder(model, image_encoder, subject.device)
    start = None if predicted is None else load_concept(predicted)
    with tune(
        subject, images, network, read_as_tensor(picture), settings, name=name, class_word=class_word, predicted=start
    ) as run:
        for event in run:
            if isinstance(event, Step) and event.losses is not None:
                print(", ".join(f"{key} {value.mean():.4f}" for key, value in event.losses.items()))
            if isinstance(event, Finished):
                concept = event.concept.renamed(name)
    return {**predicted_figures(concept), "steps": steps, **write_predicted(concept, out)}
