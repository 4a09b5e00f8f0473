"""`contextual-inversion pretrain-encoder`: METHODS.md 3.5, alone or under `accelerate launch`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.training.defaults import EncoderPrecision
from ..core.training.run.schedules import LearningRateSchedule
from .loading import load_image_encoder, load_model, share_of
from .places import file_name, going_on, require_empty, write_network, write_picture
from .pretraining_bar import follow_pretraining

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ..core.training.one_picture.pictures import PictureSource
    from ..core.training.one_picture.pretraining import EncoderPretrainingEvent, PretrainedEncoder


def main(
    *,
    model: Literal["tiny"] | Path = "tiny",
    image_encoder: Path | None = None,
    pictures: Path | None = None,
    shards: tuple[Path, ...] = (),
    world: int | None = None,
    say_place: bool | None = None,
    out: Path = Path("tuning_encoder.safetensors"),
    overwrite: bool = False,
    half: bool = True,
    preset: Literal["tiny", "sd"] | None = None,
    rank: int = 4,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    schedule: LearningRateSchedule | None = None,
    warmup: int | None = None,
    resolution: int | None = None,
    contrastive: float | None = None,
    l2: float | None = None,
    alpha: float | None = None,
    ema: float | None = None,
    precision: EncoderPrecision = "fp32",
    gradient_checkpointing: bool = False,
    seed: int = 0,
    checkpoints: Path | None = None,
    checkpoint_every: int = 200,
    resume: bool = False,
    previews: Path | None = None,
    preview_every: int = 100,
    log_every: int = 10,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a tuning-encoder: the network that makes a word and a LoRA of one picture.

    Runs unchanged under `accelerate launch`: the processes share `--batch`. What is not given comes from METHODS.md 3,
    for the bundled tiny model from what suits its size and half an hour of one processor core.

    Args:
        model: "tiny" (bundled) or a folder of a diffusers pipeline.
        image_encoder: A folder of a transformers CLIP vision model; the tiny model has its own, a pipeline may.
        pictures: A folder of pictures, one subject each.
        shards: Webdataset shards (tar files) with pictures.
        world: So many pictures of ConceptWorld, drawn by the program, for the tiny model.
        say_place: For ConceptWorld: half the prompts say where the subject stands, so that the word need not.
        out: Where the encoder goes.
        overwrite: Replace that file if it exists.
        half: Store float16 instead of float32.
        preset: Size of the network.
        rank: Of the predicted LoRA.
        steps: Optimiser steps.
        batch: Pictures a step, of all processes together.
        learning_rate: AdamW's learning rate.
        schedule: How it changes.
        warmup: Steps over which it rises.
        resolution: Side of the pictures in pixels.
        contrastive: lambda_c, weight of the contrastive loss.
        l2: lambda_2, weight of the embeddings' squared length.
        alpha: Blend of the dual path; without it the soft path alone is trained.
        ema: Decay of the running average of the weights.
        precision: bf16 computes in mixed precision.
        gradient_checkpointing: Save memory, take longer.
        seed: Of every random choice.
        checkpoints: A folder for checkpoints.
        checkpoint_every: Steps between checkpoints.
        resume: Go on from the newest checkpoint in that folder.
        previews: A folder for sample pictures.
        preview_every: Steps between them.
        log_every: Steps between reports.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
    """

    from ..core.files.tuning_encoder import save_tuning_encoder
    from ..core.models.vocabulary import known_words
    from ..core.training.one_picture.pretraining import pretrain_encoder
    from ..core.training.one_picture.recipes import WORLD_PICTURES, recommended_encoder
    from ..core.training.one_picture.settings import EncoderPretrainSettings

    tiny = model == "tiny"
    name = file_name(out, overwrite)  # before days of training
    require_empty(checkpoints, resume)
    given = {
        "preset": preset,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "resolution": resolution,
        "contrastive": contrastive,
        "l2": l2,
        "ema": ema,
    }
    drawn = world or (WORLD_PICTURES if tiny and pictures is None and not shards else None)
    source = picture_source(pictures, shards, drawn, say_place=tiny if say_place is None else say_place, seed=seed)
    processes, own_device = share_of(device)
    subject = load_model(model, str(own_device))
    settings = EncoderPretrainSettings(
        **{**recommended_encoder(subject), **{name: value for name, value in given.items() if value is not None}},
        rank=rank,
        alpha=alpha,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        checkpoint_dir=checkpoints,
        checkpoint_every=checkpoint_every,
        preview_every=preview_every if previews is not None else 0,
        log_every=log_every,
    )
    images, goes_on = load_image_encoder(model, image_encoder, own_device), checkpoints if resume else None
    run = pretrain_encoder(
        subject, images, source, settings, processes=processes, known=known_words(subject), resume=goes_on
    )
    finished = follow(run, previews, quiet=not processes.first)
    told = {**figures(finished), "processes": processes.size}
    if processes.first:
        told |= write_network(save_tuning_encoder, finished.encoder, out, name, half=half, overwrite=overwrite)
    return told


def figures(finished: PretrainedEncoder) -> dict[str, Any]:
    """What a run came to."""
    return {
        "steps": finished.step,
        "seconds": finished.seconds,
        "numbers": finished.encoder.numbers,
        "losses": finished.encoder.provenance["losses"],
        "identity": asdict(finished.encoder.identity),
    }


def picture_source(
    pictures: Path | None, shards: Iterable[Path], world: int | None, *, say_place: bool, seed: int
) -> PictureSource:
    """What the options name. Raises ValueError where they name nothing, or several things."""

    from ..core.training.one_picture.pictures import FolderPictures, ShardPictures, WorldPictures

    shards = tuple(shards)
    named = [name for name, given in (("--pictures", pictures), ("--shards", shards), ("--world", world)) if given]
    if len(named) != 1:
        raise ValueError(f"give one of --pictures, --shards and --world, not {' and '.join(named) or 'none of them'}")
    if pictures is not None:
        return FolderPictures(pictures)
    return ShardPictures(shards) if shards else WorldPictures(world or 0, seed=seed, say_place=say_place)


def follow(
    run: Iterable[EncoderPretrainingEvent], previews: Path | None = None, quiet: bool = False
) -> PretrainedEncoder:
    """Show a run as it goes, write its sample pictures, and return how it ended."""

    from ..core.training.run.events import Preview

    def write(event: EncoderPretrainingEvent) -> None:
        if isinstance(event, Preview) and previews is not None:
            with going_on("preview"):
                write_picture(contact(event.images), previews / f"step_{event.step:06d}.png")

    return follow_pretraining(run, quiet=quiet, also=write)


def contact(images: torch.Tensor) -> Image.Image:
    """(2 n, H, W, 3) in [0, 1]: the first n above the others."""

    import torch
    from PIL import Image

    rows = images.unflatten(0, (2, -1)).permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((rows * 255).round().to(torch.uint8).numpy())
