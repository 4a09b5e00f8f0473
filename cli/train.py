"""`contextual-inversion train FOLDER --class-word dog`: a folder of pictures becomes a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from ..core.concept import Concept
from ..core.files import LearnedNothingError, load_concept, nameable, safe_name, save_bundle, save_embedding
from ..core.files import pictures as files_of_pictures
from ..core.files.contextualizer import load_contextualizer
from ..core.files.pictures import ENDINGS, BrokenPictureError, mask_of
from ..core.maths.mlm import RHO
from ..core.models.diffusers_adapter import DiffusersModel
from ..core.models.protocol import TextToImageModel
from ..core.models.tiny.contextualizer import load_contextualizer as load_bundled
from ..core.networks.contextualizer import Contextualizer
from ..core.prompts.sets import PromptSet, built_in_set, built_in_sets, prompt_set_from_file, rich_set, rich_sets
from ..core.training.methods import method_called
from ..core.training.one_picture.recipes import known_words
from ..core.training.pictures import checked_pictures
from ..core.training.preparation import resolution_for
from ..core.training.presets import DEMO, PRESETS, Preset, demo_preset, without_core
from ..core.training.regularizers.context import CoReRegularizer, recommended_weights
from ..core.training.regularizers.mlm import XTI_BATCH, recommended_mlm
from ..core.training.regularizers.nearest_word import NearestTokenRegularizer
from ..core.training.regularizers.prior import PriorPreservation, require_weights
from ..core.training.regularizers.seam import Regularizer
from ..core.training.run.checkpoint import checkpoints_in
from ..core.training.run.events import CheckpointSaved, Event, Finished, Preview, Started, Step
from ..core.training.settings import Precision, TrainSettings
from ..core.training.trainer import TrainingRun, train
from .device import chosen_device
from .outputs import require_none_waiting
from .places import require_folder, write_picture

DEFAULT = next(iter(PRESETS))
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".gif", ".tif", ".tiff")
"""Pictures to people, who would miss them."""


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
    prior_pictures: int = 100,
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
        masks: Folder of masks, named like their pictures; white counts.
        initial: A concept file to start from instead of the class word.
        steps: Training steps.
        batch: Samples in the UNet at once.
        learning_rate: Of the vectors.
        vectors: Token positions that the word takes; as the recipe says, or as --initial has them, if not given.
        resolution: Side of the square training pictures; the model's own if not given.
        seed: Seed of everything random.
        precision: What the UNet computes in.
        method: What is trained: ti, xti, xti-blocks, custom-diffusion, dreambooth-lora, dreambooth (all weights but
            the text encoder's tables of tokens and positions), and for a concept given with --initial refine (a LoRA)
            or refine-all (all weights of the UNet).
        rank: Rank of the weights' change, where weights are trained; 0 for whole weights.
        weight_rate: Learning rate of the weights; the vectors' if not given.
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
    """
    recipe = recipe_for(preset, method, model)
    start = None if initial is None else load_concept(initial)
    if recipe.method.startswith("refine") and start is None:
        raise ValueError(f"{recipe.method} refines a concept: give its bundle with --initial")
    if mlm == ():
        raise ValueError("--mlm needs contextualizer files, one for each text encoder, or bundled for the tiny model's")
    files, images, shown, skipped = read_pictures(picture_files(pictures), masks, skip_broken)
    name = safe_name(name) if name else nameable(pictures.resolve().name)  # before hours of training
    require_folder(out)
    require_none_waiting(out / "checkpoints", resume)
    subject = load_model(model, device)
    given = {"steps": steps, "batch": batch, "learning_rate": learning_rate, "vectors": vectors}
    given |= {"rank": rank, "weight_rate": weight_rate, "least_rank": least_rank}
    if start is not None and vectors is None:
        given["vectors"] = start.length
    settings = recipe.settings(
        class_word,
        name=name,
        resolution=resolution,
        seed=seed,
        precision=precision,
        gradient_accumulation=gradient_accumulation,
        gradient_checkpointing=gradient_checkpointing,
        checkpoint_dir=out / "checkpoints",
        checkpoint_every=checkpoint_every,
        preview_every=preview_every,
        keep_latents=keep_latents,
        **{key: value for key, value in given.items() if value is not None},
    )
    prior = float(recipe.prior) if prior_weight is None else prior_weight
    if prior > 0:
        require_weights(settings.trains)
    wanted = recipe.core if core is None else core
    settings = settings if wanted else without_core(settings)
    regularizers: list[Regularizer] = []
    if wanted:
        regularizers.append(core_regularizer(subject, prompts, core_embedding, core_attention))
    if mlm:
        regularizers.append(
            recommended_mlm(
                subject,
                contextualizers(mlm),
                prompt_set(mlm_prompts).drawn,
                weight=mlm_weight,
                method=settings.method,
                rho=mlm_rho,
                batch=(XTI_BATCH if settings.method.startswith("xti") else 25) if mlm_batch is None else mlm_batch,
            )
        )
    if nearest:
        regularizers.append(NearestTokenRegularizer(weight=nearest, known=known_words(subject)))
    if prior > 0:
        side = resolution_for(subject, settings, checked_pictures(images))
        options = {"pictures": prior_pictures, "batch": settings.batch, "resolution": side, "seed": seed}
        regularizers.append(
            PriorPreservation(out / "class_pictures", weight=prior, progress=class_picture_lines(), **options)
        )
    run = train(
        subject,
        images,
        settings,
        regularizers=regularizers,
        masks=shown,
        resume=settings.checkpoint_dir if resume else None,
        initial=start,
    )
    try:
        with run:
            finished = follow(run, settings, out, events)
    except KeyboardInterrupt:
        # A step that was interrupted is undone. What was done before it is in the checkpoint; there is no run to go on.
        kept = checkpoints_in(settings.checkpoint_dir)
        said = f"the work so far is in {kept[0]}, go on with --resume" if kept else "before the first step was done"
        raise KeyboardInterrupt(f"interrupted; {said}") from None
    told = {"pictures": [file.name for file in files], "skipped": skipped}
    return {**figures(finished), **told, **save(finished.concept, out)}


def recipe_for(preset: str | None, method: str | None, model: str | Path) -> Preset:
    """The recipe called `preset`, or the first for `method`; for the bundled model that model's own.

    Raises ValueError that lists what there is, or as `Preset.training`.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if method is not None:
        method_called(method)
    if preset is None and model == "tiny":
        return demo_preset(method or DEMO.method)
    if preset is None and method is not None:
        return next(recipe for recipe in PRESETS.values() if recipe.method == method)
    chosen = PRESETS[preset or DEFAULT]
    return chosen if method is None else chosen.training(method)


def follow(run: TrainingRun, settings: TrainSettings, out: Path, events: Path | None) -> Finished:
    """Show a bar, write previews and JSON lines, and give back the last event. The first Ctrl-C stops and keeps."""
    with ExitStack() as stack:
        lines = None
        if events is not None:
            events.parent.mkdir(parents=True, exist_ok=True)
            lines = stack.enter_context(events.open("a", encoding="utf-8"))
        bar = stack.enter_context(tqdm(total=settings.steps, unit="step", dynamic_ncols=True))
        for event in run:
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


def class_picture_lines() -> Callable[[int, int], None]:
    """Says at each tenth how many of the prior's class pictures are drawn."""
    said: set[int] = set()

    def progress(done: int, wanted: int) -> None:
        if 10 * done // wanted not in said:
            said.add(10 * done // wanted)
            tqdm.write(f"drawing class pictures: {done} of {wanted}")

    return progress


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
        for part in ("vectors", "layer_vectors", "lora") if path == bundle else ("vectors",):
            ours, theirs = getattr(concept, part) or {}, getattr(found, part) or {}
            if ours.keys() != theirs.keys() or any(not torch.equal(theirs[name], ours[name]) for name in ours):
                raise LearnedNothingError(f"{path} read back does not hold the learned {part}")
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


def contextualizers(files: Sequence[Path]) -> list[Contextualizer]:
    """Contextualizer files, or "bundled" for the tiny model's."""
    return [load_bundled() if str(file) == "bundled" else load_contextualizer(file) for file in files]


def prompt_set(name: str) -> PromptSet:
    """A built-in set by name ("inanimate", "rich pets", ...), else a text file."""
    if name.startswith("rich ") and name.removeprefix("rich ") in rich_sets():
        return rich_set(name.removeprefix("rich "))
    return built_in_set(name) if name in built_in_sets() else prompt_set_from_file(Path(name))


def load_model(name: str | Path, device: str | None) -> TextToImageModel:
    """The bundled tiny model, or the folder of a diffusers pipeline."""
    place = chosen_device(device)
    if name == "tiny":
        from ..core.models.tiny import load_tiny

        return DiffusersModel.from_tiny(load_tiny(), device=place)
    return DiffusersModel.from_pipeline(name, device=place)


def picture_files(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of their names; those of kinds that are not read are named.

    Raises NotADirectoryError where there is no such folder, FileNotFoundError where no picture is in it.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: name the one that holds the training pictures")
    files = files_of_pictures.picture_files(folder)
    unread = [file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in UNREAD]
    if unread and files:
        print(f"left out: {', '.join(unread)}; only {', '.join(ENDINGS)} are read, so convert them first")
    if not files:
        raise FileNotFoundError(f"no pictures ({', '.join(ENDINGS)}) in {folder}")
    return files


def read_pictures(
    files: Sequence[Path], masks: Path | None = None, skip_broken: bool = False
) -> tuple[list[Path], list[torch.Tensor], list[torch.Tensor] | None, list[str]]:
    """The files that can be used, their pictures and, with a folder of `masks`, their masks; and what was left out.

    Raises BrokenPictureError that names the first file which is broken, or whose mask is missing, broken or empty;
    with `skip_broken` only where nothing is left.
    """
    used, images, shown, skipped = [], [], [], []
    for file in files:
        try:
            image = read_picture(file)
            mask = None if masks is None else read_mask(masks, file)
        except BrokenPictureError as error:
            if not skip_broken:
                raise BrokenPictureError(f"{error}; --skip-broken trains without it") from error
            print(f"left out: {error}")
            skipped.append(str(error))
            continue
        used.append(file)
        images.append(image)
        shown.append(mask)
    if not used:
        raise BrokenPictureError(f"no picture can be used: {'; '.join(skipped)}")
    return used, images, None if masks is None else shown, skipped


def read_picture(file: Path) -> torch.Tensor:
    """(H, W, 3) in [0, 1], turned as the camera says; transparency on white. Raises BrokenPictureError."""
    return torch.from_numpy(files_of_pictures.read_picture(file).astype(np.float32) / 255)


def read_mask(folder: Path, picture: Path) -> torch.Tensor:
    """(H, W) in [0, 1] from the mask of the same name. Raises BrokenPictureError, also for none or an empty one."""
    return torch.from_numpy(files_of_pictures.read_mask(mask_of(picture, folder)))


def write_preview(preview: Preview, folder: Path) -> Sequence[Path]:
    """PNG files of a preview."""
    paths = []
    for number, image in enumerate(preview.images):
        picture = Image.fromarray((image.numpy() * 255).round().astype(np.uint8))
        paths.append(write_picture(picture, folder / f"step_{preview.step:06d}_{number}.png"))
    return paths
