"""`contextual-inversion pretrain-contextualizer`: METHODS.md 2.4, alone or under `accelerate launch`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.prompts.defaults import REAL_SHARE
from ..core.training.defaults import PretrainingMode
from ..core.training.run.schedules import LearningRateSchedule
from .loading import load_text_encoder, share_of
from .places import file_name, require_empty, write_network
from .pretraining_bar import follow_pretraining

if TYPE_CHECKING:
    from ..core.training.contextualizer.pretraining import Pretrained, PretrainingEvent


def main(
    *,
    model: Literal["tiny"] | Path = "tiny",
    encoder: str | None = None,
    captions: Path | None = None,
    shards: tuple[Path, ...] = (),
    synthetic: Literal["concept_world", "pets", "objects"] | None = None,
    real_share: float = REAL_SHARE,
    out: Path = Path("contextualizer.safetensors"),
    overwrite: bool = False,
    half: bool = True,
    preset: Literal["paper", "short", "tiny"] | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    schedule: LearningRateSchedule | None = None,
    warmup: int = 0,
    rho: float = 0.15,
    mode: PretrainingMode = "non_padding",
    vocabulary_captions: int | None = None,
    held_out: int = 2000,
    seed: int = 0,
    workers: int = 0,
    checkpoints: Path | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    log_every: int = 50,
    device: str | None = None,
) -> dict[str, Any]:
    """Train a contextualizer: the network that guesses masked words for the MLM regularizer.

    Runs unchanged under `accelerate launch`: the processes share `--batch`. What is not given comes from METHODS.md
    2.4, for the bundled tiny model from what suits its size.

    Args:
        model: "tiny" (bundled) or a folder of a diffusers pipeline, whose text encoder is used.
        encoder: Which text encoder of the model, e.g. clip_l or clip_g; needed where it has several.
        captions: A text file of captions, one a line.
        shards: Webdataset shards (tar files) whose .txt members are captions.
        synthetic: Built-in captions, alone or mixed with the real ones; concept_world for the tiny model, else none.
        real_share: Share of real captions where both kinds are given.
        out: Where the contextualizer goes.
        overwrite: Replace that file if it exists.
        half: Store float16 instead of float32.
        preset: Size of the network.
        steps: Optimiser steps.
        batch: Captions a step, of all processes together.
        learning_rate: AdamW's learning rate.
        schedule: How it changes.
        warmup: Steps over which it rises.
        rho: Probability that a token is masked.
        mode: Ask for every token, masked ones five times (non_padding), or for masked ones alone (masked).
        vocabulary_captions: Keep output rows only for tokens that occur in so many captions; 0 keeps all.
        held_out: Captions, never trained on, that are guessed at the end.
        seed: Of every random choice.
        workers: Processes that prepare batches.
        checkpoints: A folder for checkpoints.
        checkpoint_every: Steps between checkpoints.
        resume: Go on from the newest checkpoint in that folder.
        log_every: Steps between reports.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
    """

    from ..core.files.contextualizer import save_contextualizer
    from ..core.models.frozen import frozen, on_device
    from ..core.prompt_sets import synthetic_captions
    from ..core.prompts.captions import captions_from
    from ..core.training.contextualizer.pretraining import PretrainSettings, pretrain_contextualizer
    from ..core.training.contextualizer.recipes import recommended_pretraining

    given = {
        "preset": preset,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "vocabulary_captions": vocabulary_captions,
    }
    name = file_name(out, overwrite)  # before days of training
    require_empty(checkpoints, resume)
    made = synthetic or ("concept_world" if model == "tiny" else None)
    source = captions_from(captions, shards, synthetic_captions(made) if made else None, real_share)
    processes, own_device = share_of(device)
    text_encoder = load_text_encoder(model, encoder)
    settings = PretrainSettings(
        **{
            **recommended_pretraining(text_encoder),
            **{key: value for key, value in given.items() if value is not None},
        },
        warmup=warmup,
        rho=rho,
        mode=mode,
        held_out=held_out,
        seed=seed,
        workers=workers,
        checkpoint_dir=checkpoints,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
    )
    with frozen([text_encoder.module]), on_device([text_encoder.module], own_device):
        run = pretrain_contextualizer(
            text_encoder, source, settings, processes=processes, resume=checkpoints if resume else None
        )
        finished = follow(run, quiet=not processes.first)
    told = {**figures(finished, log_every), "processes": processes.size}
    if processes.first:
        finished.contextualizer.provenance["seconds"] = round(finished.seconds, 1)
        told |= write_network(save_contextualizer, finished.contextualizer, out, name, half=half, overwrite=overwrite)
    return told


def figures(finished: Pretrained, log_every: int) -> dict[str, Any]:
    """What a run came to: loss and accuracy are means of the last `log_every` steps."""
    return {
        "steps": finished.step,
        "seconds": finished.seconds,
        "loss": float(finished.losses["loss"][-log_every:].mean()),
        "masked_accuracy": float(finished.losses["masked accuracy"][-log_every:].mean()),
        "held_out": None if finished.held_out is None else finished.held_out.figures(),
        "classes": finished.contextualizer.classes,
        "encoder": asdict(finished.contextualizer.encoder),
    }


def follow(run: Iterable[PretrainingEvent], quiet: bool = False) -> Pretrained:
    """Show a run as it goes and return how it ended."""
    finished = follow_pretraining(run, quiet=quiet)
    if finished.held_out is not None and not quiet:
        print(finished.held_out.summary())
    return finished
