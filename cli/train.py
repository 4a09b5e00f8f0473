"""`contextual-inversion train FOLDER --class-word dog`: a folder of pictures becomes a word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image, ImageOps
from tqdm import tqdm

from ..core.concept import Concept
from ..core.files import LearnedNothingError, load_concept, safe_name, save_bundle, save_embedding
from ..core.models.diffusers_adapter import DiffusersModel
from ..core.models.protocol import TextToImageModel
from ..core.prompts.sets import PromptSet, built_in_set, built_in_sets, prompt_set_from_file
from ..core.training.core_regularizer import CoReRegularizer, recommended_weights
from ..core.training.events import CheckpointSaved, Event, Finished, Preview, Started, Step
from ..core.training.presets import PRESETS
from ..core.training.settings import Precision, TrainSettings
from ..core.training.trainer import TrainingRun, train

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DEFAULT = next(iter(PRESETS))


def main(
    pictures: Annotated[Path, tyro.conf.Positional],
    *,
    class_word: str,
    name: str | None = None,
    out: Path = Path("out/train"),
    model: Literal["tiny"] | Path = "tiny",
    preset: str = DEFAULT,
    core: bool | None = None,
    prompts: str = "inanimate",
    core_embedding: float | None = None,
    core_attention: float | None = None,
    masks: Path | None = None,
    initial: Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    vectors: int = 1,
    resolution: int | None = None,
    seed: int = 0,
    precision: Precision = "model",
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    resume: bool = False,
    preview_every: int = 0,
    checkpoint_every: int = 50,
    device: str | None = None,
    events: Path | None = None,
) -> dict[str, Any]:
    """Train a word on your own pictures: an embedding file, a bundle, previews and checkpoints.

    Ctrl-C keeps the work: `--resume` goes on from it.

    Args:
        pictures: Folder of training pictures, of any sizes.
        class_word: The nearest ordinary word or phrase for what is in them; the new word starts from it.
        name: The new word and the name of its files; made from the folder's name if not given.
        out: Folder to write to.
        model: "tiny" (bundled), or a folder of a diffusers pipeline (SD 1.x, SD 2.x, SDXL).
        preset: The recipe to start from; the options below replace its values.
        core: Add CoRe; as the recipe says if not given.
        prompts: CoRe's prompts: a built-in set or a text file with one prompt a line.
        core_embedding: lambda of the context-embedding loss; chosen by the model's text encoder if not given.
        core_attention: lambda of the context-attention loss; chosen by the model's text encoder if not given.
        masks: Folder of masks, named like their pictures; white counts.
        initial: A concept file to start from instead of the class word.
        steps: Training steps.
        batch: Samples in the UNet at once.
        learning_rate: Of the vectors.
        vectors: Token positions that the word takes.
        resolution: Side of the square training pictures; the model's own if not given.
        seed: Seed of everything random.
        precision: What the UNet computes in.
        gradient_accumulation: Batches a step.
        gradient_checkpointing: Save memory, take longer.
        resume: Go on from the newest checkpoint in the output folder.
        preview_every: Steps between preview pictures; 0 for none.
        checkpoint_every: Steps between checkpoints.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        events: File for one JSON line an event.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    files = picture_files(pictures)
    name = safe_name(name or re.sub(r"[^A-Za-z0-9_.+-]+", "_", pictures.resolve().name))  # before hours of training
    subject = load_model(model, device)
    given = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
    settings = PRESETS[preset].settings(
        class_word,
        name=name,
        vectors=vectors,
        resolution=resolution,
        seed=seed,
        precision=precision,
        gradient_accumulation=gradient_accumulation,
        gradient_checkpointing=gradient_checkpointing,
        checkpoint_dir=out / "checkpoints",
        checkpoint_every=checkpoint_every,
        preview_every=preview_every,
        **{key: value for key, value in given.items() if value is not None},
    )
    wanted = PRESETS[preset].core if core is None else core
    regularizers = [core_regularizer(subject, prompts, core_embedding, core_attention)] if wanted else []
    run = train(
        subject,
        [read_picture(file) for file in files],
        settings,
        regularizers=regularizers,
        masks=None if masks is None else [read_mask(masks, file) for file in files],
        resume=settings.checkpoint_dir if resume else None,
        initial=None if initial is None else load_concept(initial),
    )
    with run:
        finished = follow(run, settings, out, events)
    return {**figures(finished), "pictures": [file.name for file in files], **save(finished.concept, out)}


def follow(run: TrainingRun, settings: TrainSettings, out: Path, events: Path | None) -> Finished:
    """Show a bar, write previews and JSON lines, and give back the last event. The first Ctrl-C stops and keeps."""
    with ExitStack() as stack:
        lines = None
        if events is not None:
            events.parent.mkdir(parents=True, exist_ok=True)
            lines = stack.enter_context(events.open("a", encoding="utf-8"))
        bar = stack.enter_context(tqdm(total=settings.steps, unit="step", dynamic_ncols=True))
        for event in _interruptible(run):
            if lines is not None:
                print(json.dumps(as_line(event)), file=lines, flush=True)
            if isinstance(event, Started):
                bar.update(event.first_step)
            elif isinstance(event, Step):
                bar.update(event.step - bar.n)
                if event.losses:
                    bar.set_postfix({key: f"{float(value.nanmean()):.4g}" for key, value in event.losses.items()})
            elif isinstance(event, Preview):
                write_preview(event, out / "previews")
            elif isinstance(event, Finished):
                return event
    raise RuntimeError("the training ended without a result")


def _interruptible(run: TrainingRun) -> Iterator[Event]:
    while True:
        try:
            yield next(run)
        except StopIteration:
            return
        except KeyboardInterrupt:
            # A step that was interrupted is undone and kept in the checkpoint; there is no run to go on with.
            raise RuntimeError("interrupted; the work so far is in the checkpoint, go on with --resume") from None


def as_line(event: Event) -> dict[str, Any]:
    """An event as JSON data, without pictures and vectors."""
    line: dict[str, Any] = {"event": type(event).__name__.lower()}
    for key, value in vars(event).items():
        if key == "losses":
            line[key] = value and {name: losses.tolist() for name, losses in value.items()}
        elif not isinstance(value, torch.Tensor | Concept):
            line[key] = str(value) if isinstance(value, Path) else value
    if isinstance(event, CheckpointSaved):
        line["path"] = event.path.name
    if isinstance(event, Finished):
        del line["losses"]
    return line


def figures(finished: Finished) -> dict[str, Any]:
    """What a run came to: steps, seconds, mean losses of its last tenth."""
    return {
        "step": finished.step,
        "seconds": round(finished.seconds, 3),
        "stopped": finished.stopped,
        "losses": dict(finished.concept.provenance["losses"]),
        "provenance": dict(finished.concept.provenance),
    }


def save(concept: Concept, out: Path) -> dict[str, Any]:
    """Write embedding and bundle, read them back and compare. Raises LearnedNothingError where they differ."""
    embedding = save_embedding(concept, out / "embeddings", if_exists="replace")
    bundle = save_bundle(concept, out / "bundles", if_exists="replace")
    for path in (embedding, bundle):
        found = load_concept(path, widths={name: value.shape[1] for name, value in concept.vectors.items()})
        if any(not torch.equal(found.vectors[name], value) for name, value in concept.vectors.items()):
            raise LearnedNothingError(f"{path} read back does not hold the learned vectors")
    print(f"wrote {embedding} and {bundle}; type embedding:{concept.name} in a prompt")
    return {"embedding": str(embedding), "bundle": str(bundle)}


def core_regularizer(
    model: TextToImageModel, prompts: str, embedding: float | None, attention: float | None
) -> CoReRegularizer:
    """CoRe with a built-in set or a file of prompts, and weights for this model where none are given."""
    weights = recommended_weights(model)
    return CoReRegularizer(
        prompt_set(prompts).prompts,
        embedding_weight=weights.embedding if embedding is None else embedding,
        attention_weight=weights.attention if attention is None else attention,
    )


def prompt_set(name: str) -> PromptSet:
    """A built-in set by name, else a text file."""
    return built_in_set(name) if name in built_in_sets() else prompt_set_from_file(Path(name))


def load_model(name: str | Path, device: str | None) -> TextToImageModel:
    """The bundled tiny model, or the folder of a diffusers pipeline."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "tiny":
        from ..core.models.tiny import load_tiny

        return DiffusersModel.from_tiny(load_tiny(), device=place)
    return DiffusersModel.from_pipeline(name, device=place)


def picture_files(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of their names. Raises FileNotFoundError where there are none."""
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise FileNotFoundError(f"no pictures ({', '.join(PICTURES)}) in {folder}")
    return files


def read_picture(file: Path) -> torch.Tensor:
    """(H, W, 3) in [0, 1], turned as the camera says; transparency on white."""
    picture = ImageOps.exif_transpose(Image.open(file))
    if picture.mode in ("RGBA", "LA", "P"):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)


def read_mask(folder: Path, picture: Path) -> torch.Tensor:
    """(H, W) in [0, 1] from the mask of the same name. Raises FileNotFoundError where there is none."""
    found = [file for file in picture_files(folder) if file.stem == picture.stem]
    if not found:
        raise FileNotFoundError(f"no mask named {picture.stem} in {folder}")
    return torch.from_numpy(
        np.array(ImageOps.exif_transpose(Image.open(found[0])).convert("L"), dtype=np.float32) / 255
    )


def write_preview(preview: Preview, folder: Path) -> Sequence[Path]:
    """PNG files of a preview."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(preview.images):
        paths.append(folder / f"step_{preview.step:06d}_{number}.png")
        Image.fromarray((image.numpy() * 255).round().astype(np.uint8)).save(paths[-1])
    return paths
