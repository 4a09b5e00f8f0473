"""`contextual-inversion optimize CONCEPT --prompt "a {} in the snow"`: a concept repaired for one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..core.training.defaults import REPAIR_BATCH, REPAIR_RATE, REPAIR_STEPS
from .loading import load_model
from .places import require_folder, write_picture
from .words import IfTaken, free_word, word_folders

if TYPE_CHECKING:
    from ..core.concept import Concept
    from ..core.models.protocol import TextToImageModel
    from ..core.training.prompt_repair import Repair
    from ..core.training.regularizers.context import CoReWeights
    from ..core.training.run.events import Finished


def main(
    concepts: Annotated[Sequence[Path], tyro.conf.Positional],
    *,
    prompt: str,
    out: Path = Path("out/optimize"),
    model: Literal["tiny"] | Path = "tiny",
    steps: int = REPAIR_STEPS,
    learning_rate: float = REPAIR_RATE,
    batch: int = REPAIR_BATCH,
    noise: bool = False,
    size: int = 0,
    core_embedding: float | None = None,
    core_attention: float | None = None,
    seed: int = 0,
    device: str | None = None,
    class_word: str = "",
    if_taken: IfTaken = "number",
) -> dict[str, Any]:
    """Repair one prompt with the concepts in it: both losses of CoRe, no picture, a picture before and after.

    Args:
        concepts: Bundles or embedding files of the concepts that the prompt mentions.
        prompt: The prompt; <name> where a concept goes, or {} for the first.
        out: Folder to write to.
        model: "tiny" (bundled), or a folder of a diffusers pipeline.
        steps: Steps; the paper takes 10.
        learning_rate: Of the vectors.
        batch: Latents a step.
        noise: Look at pure noise also where the concept kept latents of its training pictures.
        size: Side of pictures and noise in pixels; 0 for the model's own.
        core_embedding: lambda of the context-embedding loss; chosen by the model's text encoder if not given.
        core_attention: lambda of the context-attention loss; chosen likewise.
        seed: Seed of everything random.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        class_word: The ordinary word for the thing, for files that do not say it.
        if_taken: Where the output folder has a word of this name: write name_2, replace it, or refuse.
    """

    import numpy as np
    import torch
    from PIL import Image

    from ..core.files import load_concept
    from ..core.models.families import drawn_resolution
    from ..core.training.prompt_repair import draw, repair

    if not concepts:
        raise ValueError("name the bundles or embedding files of the concepts that the prompt mentions")
    require_folder(out)
    subject = load_model(model, device)
    widths = {name: encoder.width for name, encoder in subject.text_encoders.items()}
    loaded = [load_concept(path, widths=widths) for path in concepts]
    given = [replace(one, class_word=one.class_word or class_word) for one in loaded]
    side = size or drawn_resolution(subject)
    work = repair(
        subject,
        given,
        prompt,
        steps=steps,
        learning_rate=learning_rate,
        batch=batch,
        seed=seed,
        weights=chosen_weights(subject, core_embedding, core_attention),
        noise_side=side // subject.latent_factor if noise or given[0].latents is None else None,
    )
    if given[0].latents is None and not noise:
        print(f"{given[0].name!r} kept no latents of its training pictures (train --keep-latents): pure noise instead")
    finished, repaired = follow(work, steps)
    files = write_repaired(repaired, out, if_taken)
    pictures = [draw(subject, those, prompt, size=(side, side), seed=seed) for those in (given, repaired)]
    path = out / "before_and_after.png"
    write_picture(Image.fromarray((torch.cat(pictures, dim=2)[0].numpy() * 255).round().astype(np.uint8)), path)
    print(f"wrote {path} and {', '.join(files)}")
    losses = {name: [float(values[0]), float(values[-1])] for name, values in finished.losses.items()}
    return {"losses": losses, "seconds": round(finished.seconds, 3), "files": files, "picture": str(path)}


def chosen_weights(model: TextToImageModel, embedding: float | None, attention: float | None) -> CoReWeights:
    """CoRe's weights: those recommended for the model where none are given."""

    from ..core.training.regularizers.context import CoReWeights, recommended_weights

    weights = recommended_weights(model)
    return CoReWeights(
        weights.embedding if embedding is None else embedding,
        weights.attention if attention is None else attention,
        weights.source,
    )


def follow(work: Repair, steps: int) -> tuple[Finished, list[Concept]]:
    """Show a bar; the last event, and the concepts as they are then."""

    from tqdm import tqdm

    from ..core.training.run.events import Finished, Step

    with work.run as events, tqdm(total=steps, unit="step") as bar:
        for event in events:
            if isinstance(event, Step):
                bar.update(event.step - bar.n)
            elif isinstance(event, Finished):
                finished = event
        return finished, work.concepts


def write_repaired(concepts: Sequence[Concept], out: Path, if_taken: IfTaken) -> list[str]:
    """The bundle and the embedding of each, in turn, both or neither."""

    from ..core.files import all_or_none, safe_name, save_bundle, save_embedding

    files, folders = [], word_folders(out)
    for concept in concepts:
        named = concept.renamed(free_word(safe_name(f"{concept.name}_repaired"), folders, if_taken))
        with all_or_none():
            written = [
                save(named, folder, if_exists="replace")
                for save, folder in zip((save_bundle, save_embedding), folders, strict=True)
            ]
        files += map(str, written)
    return files
