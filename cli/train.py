"""`contextual-inversion train FOLDER --class-word dog`: a folder of pictures becomes a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..core.maths.defaults import RHO
from ..core.training.defaults import CLASS_PICTURES, Precision
from .loading import load_contextualizers, load_model, prompt_set
from .places import require_folder, write_concept
from .training_bar import class_picture_lines, follow
from .training_pictures import captions_beside, listed, training_files, usable_pictures
from .words import IfTaken, kept_in, place_for

if TYPE_CHECKING:
    from ..core.concept import Concept
    from ..core.models.protocol import TextToImageModel
    from ..core.training.plan import Plan
    from ..core.training.presets import Preset
    from ..core.training.regularizers.registry import Added
    from ..core.training.run.events import Finished
    from ..core.training.trainer import TrainingRun

TOY = (
    "the bundled model is a toy of 128 x 128 pixels that knows a drawn world: photographs become something like a "
    "word, and no good one. For photographs name a Stable Diffusion pipeline's folder with --model"
)


def main(
    pictures: Annotated[Path, tyro.conf.Positional],
    *,
    class_word: str,
    name: str | None = None,
    out: Path = Path("out/train"),
    model: Literal["tiny"] | Path = "tiny",
    preset: str | None = None,
    core: bool | None = None,
    prompts: str = "inanimate",
    core_embedding: float | None = None,
    core_attention: float | None = None,
    masks: Path | None = None,
    initial: Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    vectors: int | None = None,
    resolution: int | None = None,
    seed: int = 0,
    precision: Precision = "model",
    method: str | None = None,
    rank: int | None = None,
    weight_rate: float | None = None,
    prior_weight: float | None = None,
    prior_pictures: int = CLASS_PICTURES,
    keep_latents: bool = False,
    gradient_accumulation: int = 1,
    gradient_checkpointing: bool = False,
    resume: bool = False,
    preview_every: int = 0,
    checkpoint_every: int = 50,
    device: str | None = None,
    events: Path | None = None,
    mlm: tuple[Path, ...] | None = None,
    mlm_prompts: str = "rich objects",
    mlm_weight: float | None = None,
    mlm_rho: float = RHO,
    mlm_batch: int | None = None,
    nearest: float | None = None,
    least_rank: int | None = None,
    skip_broken: bool = False,
    also: tuple[str, ...] = (),
    if_taken: IfTaken = "number",
    captions: bool = True,
    regularize_every: int | None = None,
) -> dict[str, Any]:
    """Train a word on your own pictures: an embedding file, a bundle, previews and checkpoints.

    Ctrl-C keeps the work: `--resume` goes on from it.

    Args:
        pictures: Folder of training pictures, of any sizes.
        class_word: The nearest ordinary word or phrase for what is in them; the new word starts from it.
        name: The new word and the name of its files; made from the folder's name if not given.
        out: Folder to write to.
        model: "tiny" (bundled), or a folder of a diffusers pipeline (SD 1.x, SD 2.x, SDXL).
        preset: The recipe to start from; the options below replace its values. The method's own if not given.
        core: Add CoRe; as the recipe says if not given. Its rescaling window goes with it.
        prompts: CoRe's prompts: a built-in set or a text file with one prompt a line.
        core_embedding: lambda of the context-embedding loss; chosen by the model's text encoder if not given.
        core_attention: lambda of the context-attention loss; chosen by the model's text encoder if not given.
        masks: Folder of masks, named like their pictures; white counts. If not given, masks that lie beside their
            pictures (NAME-masklabel.png, NAME-mask.png, NAME_mask.png).
        initial: A concept file to start from instead of the class word.
        steps: Training steps.
        batch: Samples in the UNet at once.
        learning_rate: Of the vectors.
        vectors: Token positions that the word takes; as the recipe says, or as --initial has them, if not given.
        resolution: Side of the square training pictures; the model's own if not given (tiny: 128).
        seed: Seed of everything random.
        precision: What the UNet computes in.
        method: What is trained: ti, xti, xti-blocks, custom-diffusion, dreambooth-lora, dreambooth (all weights but
            the text encoder's tables of tokens and positions), word-lora (the word and a LoRA together), and for a
            concept given with --initial refine (a LoRA) or refine-all (all weights of the UNet).
        rank: Rank of the weights' change, where weights are trained; 0 for whole weights.
        weight_rate: Learning rate of the weights; as the recipe says if not given, else the vectors'.
        prior_weight: Weight of prior preservation; as the recipe says if not given.
        prior_pictures: Class pictures that the model draws for it, kept in the output folder.
        keep_latents: Store the training pictures' latents with the concept, for `optimize`.
        gradient_accumulation: Batches a step.
        gradient_checkpointing: Save memory, take longer.
        resume: Go on from the newest checkpoint in the output folder.
        preview_every: Steps between preview pictures; 0 for none.
        checkpoint_every: Steps between checkpoints.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        events: File for one JSON line an event.
        mlm: Add MLM with these contextualizer files, one for each text encoder; "bundled" for the tiny model's.
        mlm_prompts: MLM's prompts: a rich or built-in set, or a text file with one prompt a line.
        mlm_weight: lambda of the MLM loss; chosen by the model's text encoder and the method if not given.
        mlm_rho: Probability that MLM masks a token.
        mlm_batch: MLM's prompts a step; 25, or 12 for XTI, if not given.
        nearest: Add the pull towards the nearest real words with this weight; 0.01 is the tuning-encoder's.
        least_rank: Of a LoRA, the rank that learns at the noisiest timestep (T-LoRA); the whole rank at every one if
            not given.
        skip_broken: Leave out, and name, pictures and masks that are broken, empty or missing, instead of stopping.
        also: Add more regularizers by name, with their numbers: NAME, or NAME:NUMBER=VALUE,NUMBER=VALUE; an unknown one
            is answered with a list.
        if_taken: Where the output folder has a word of this name: train name_2 beside it, with checkpoints of its own,
            replace both, or refuse before the training.
        captions: Train each picture on the lines of the text file beside it that hold {} or the class word.
        regularize_every: Ask CoRe, MLM and others only in every so many steps, with so many times their weight: less
            time, the same on average.
    """

    from ..core.files import nameable, safe_name
    from ..core.training.methods import method_called
    from ..core.training.plan import Choices, Prior, plan
    from ..core.training.preparation import resolution_for
    from ..core.training.regularizers.registry import Added

    recipe, start = recipe_for(preset, method, model), begun_from(initial)
    if method_called(recipe.method).refines and start is None:
        raise ValueError(f"{recipe.method} refines a concept: give its bundle with --initial")
    if mlm == ():
        raise ValueError("--mlm needs contextualizer files, one for each text encoder, or bundled for the tiny model's")
    further = [parsed(said) for said in also]
    folder = training_files(pictures)
    usable = usable_pictures(folder, masks, skip_broken)
    own = captions_beside(folder, usable.files, class_word) if captions else {}
    require_folder(out)
    named = safe_name(name) if name else nameable(pictures.resolve().name)
    name, checkpoints = place_for(out, named, if_taken, resume)  # before hours of training
    subject = load_model(model, device)
    if model == "tiny":
        print(TOY)
    added: list[Added] = []
    if recipe.core if core is None else core:
        added.append(core_added(prompts, core_embedding, core_attention))
    if mlm:
        added.append(mlm_added(mlm, mlm_prompts, mlm_weight, mlm_rho, mlm_batch))
    if nearest:
        added.append(Added("nearest", {"weight": nearest}))
    settings = {
        "name": name,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "vectors": vectors,
        "resolution": resolution,
        "seed": seed,
        "precision": precision,
        "rank": rank,
        "weight_rate": weight_rate,
        "least_rank": least_rank,
        "keep_latents": keep_latents,
        "gradient_accumulation": gradient_accumulation,
        "gradient_checkpointing": gradient_checkpointing,
        "preview_every": preview_every,
        "checkpoint_every": checkpoint_every,
        "checkpoint_dir": checkpoints,
        "regularize_every": regularize_every,
    }
    prior = Prior(prior_weight, prior_pictures, folder=out / "class_pictures", progress=class_picture_lines())
    choices = Choices(recipe, class_word, settings, [*added, *further], prior=prior, start=start)
    planned = captioned(plan(subject, choices), subject, [own.get(file, ()) for file in usable.files])
    images, shown = usable.read(resolution_for(subject, planned.settings))
    goes_on = planned.settings.checkpoint_dir if resume else None
    finished = finished_or_kept(planned.begin(subject, images, masks=shown, resume=goes_on), out, events)
    told = {"pictures": [file.name for file in usable.files], "skipped": list(usable.skipped)}
    told["left_out"] = dict(folder.left_out)
    with kept_in(checkpoints):
        return {**figures(finished), **told, **write_concept(finished.concept, out)}


def captioned(planned: Plan, model: TextToImageModel, captions: Sequence[Sequence[str]]) -> Plan:
    """The plan with each picture's own prompts; those that have no room are named."""

    from ..core.training.captions import with_captions

    own, others = with_captions(model, planned, captions)
    if others:
        print(f"left out: captions that do not fit into the text encoder: {listed(repr(one[:60]) for one in others)}")
    used = sum(map(bool, own.settings.captions))
    if used:
        print(f"captions: {used} of {len(captions)} pictures are trained on their own")
    return own


def recipe_for(preset: str | None, method: str | None, model: str | Path) -> Preset:
    """The recipe called `preset`, or the first for `method`; for the bundled model that model's own.

    Raises ValueError that lists what there is, or as `Preset.training`.
    """

    from ..core.training.presets import DEMO, PRESETS, demo_preset, first_preset

    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if preset is None and model == "tiny":
        return demo_preset(method or DEMO.method)
    if preset is None and method is not None:
        return first_preset(method)
    chosen = PRESETS[preset or next(iter(PRESETS))]
    return chosen if method is None else chosen.training(method)


def begun_from(initial: Path | None) -> Concept | None:
    """The concept that the training goes on from, if there is one."""

    from ..core.files import load_concept

    return None if initial is None else load_concept(initial)


def core_added(prompts: str, embedding: float | None, attention: float | None) -> Added:
    """CoRe with a built-in set or a file of prompts, and weights for this model where none are given."""

    from ..core.training.regularizers.registry import Added

    weights = {"embedding_weight": embedding, "attention_weight": attention}
    return Added("core", {"prompts": prompt_set(prompts).prompts, **weights})


def mlm_added(files: Sequence[Path], prompts: str, weight: float | None, rho: float, batch: int | None) -> Added:
    """MLM with contextualizer files and a set of prompts; what is not given suits model and method."""

    from ..core.training.regularizers.registry import Added

    options = {"contextualizers": load_contextualizers(files), "prompts": prompt_set(prompts).drawn}
    return Added("mlm", {**options, "weight": weight, "rho": rho, "batch": batch})


def parsed(said: str) -> Added:
    """What NAME:NUMBER=VALUE,NUMBER=VALUE adds. Raises ValueError that says what can be added and set."""

    from ..core.training.regularizers.registry import Added

    name, _, rest = said.partition(":")
    added = Added(name)
    known = added.kind.numbers
    try:
        pairs = [part.partition("=")[::2] for part in rest.split(",") if part]
        return Added(name, {key: type(known[key])(value) for key, value in pairs})  # whole where the number is
    except (KeyError, ValueError):
        raise ValueError(
            f"--also {said}: of {name} can be set {', '.join(known)}; NAME:NUMBER=VALUE sets one"
        ) from None


def finished_or_kept(run: TrainingRun, out: Path, events: Path | None) -> Finished:
    """The run's last event. Raises KeyboardInterrupt that says what is kept where Ctrl-C ends it before."""

    from ..core.training.run.checkpoint import checkpoints_in

    try:
        with run:
            return follow(run, out, events)
    except KeyboardInterrupt:
        # A step that was interrupted is undone. What was done before it is in the checkpoint; there is no run to go on.
        kept = checkpoints_in(run.settings.checkpoint_dir)
        said = f"the work so far is in {kept[0]}, go on with --resume" if kept else "before the first step was done"
        raise KeyboardInterrupt(f"interrupted; {said}") from None


def figures(finished: Finished) -> dict[str, Any]:
    """What a run came to: steps, seconds, mean losses of its last tenth."""
    return {
        "step": finished.step,
        "seconds": round(finished.seconds, 3),
        "stopped": finished.stopped,
        "losses": dict(finished.concept.provenance["losses"]),
        "provenance": dict(finished.concept.provenance),
    }
