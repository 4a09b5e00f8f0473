"""One picture, one word: the network that predicts a word and a LoRA, its training, and what it says of a picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..core.concept import Concept
from ..core.files import safe_name
from ..core.files.tuning_encoder import load_tuning_encoder, save_tuning_encoder
from ..core.models.image_encoder import ImageEncoder
from ..core.models.tiny.weights import tiny_weights_path
from ..core.networks.tuning_encoder import PRESETS, TuningEncoder
from ..core.training.encoder_pictures import GivenPictures, PictureSource, WorldPictures
from ..core.training.encoder_pretraining import (
    EncoderPretrainingEvent,
    EncoderPretrainSettings,
    PretrainedEncoder,
    pretrain_encoder,
)
from ..core.training.encoder_recipes import known_words, recommended_encoder
from ..core.training.events import Event, Finished
from ..core.training.predict import predict_concept
from ..core.training.tuning import MOST_STEPS, TuneSettings, tune
from .comfy_model import ComfyModel
from .concepts import NUMBER, free_name
from .folders import TUNING_ENCODERS, files_of, first_folder
from .interrupted import Resumable, checkpoints_root
from .reporting import Reporter
from .sockets import CATEGORY, PREFIX, ConceptSocket, LossMapSocket, TuningEncoderSocket

BUNDLED = "bundled: demo model"
AUTO = "auto (for this model)"
LORA_AND_VECTORS, LORA, VECTORS = "lora and vectors", "lora", "vectors"
VISION_TIP = (
    "The CLIP vision model that the encoder was trained with, from a stock Load CLIP Vision node. The demo model's own "
    "comes with this pack: leave this open."
)


class LoadTuningEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadTuningEncoder",
            display_name="Load Tuning Encoder",
            category=CATEGORY,
            description="A tuning-encoder: the network that makes a word and a LoRA of one picture. Each belongs to "
            "one model and to one CLIP vision model.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[BUNDLED, *files_of(TUNING_ENCODERS)],
                    default=BUNDLED,
                    tooltip="The one that comes with this pack, for the demo model, or one in models/tuning_encoders.",
                )
            ],
            outputs=[
                TuningEncoderSocket.Output(
                    display_name="tuning_encoder", tooltip="For PredictConcept and TunePredictedConcept."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> object:
        # A file that was written anew under the same name counts as another input.
        try:
            facts = encoder_path(file).stat()
        except (OSError, ValueError):
            return None
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        with torch.inference_mode(False):
            return io.NodeOutput(load_tuning_encoder(encoder_path(file)))


class PretrainTuningEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "PretrainTuningEncoder",
            display_name="Pretrain Tuning Encoder",
            category=CATEGORY,
            description="Teaches a tuning-encoder to predict words, on many pictures with one subject each. For small "
            "runs: half an hour on a processor for the demo model. For Stable Diffusion use the command "
            "pretrain-encoder on GPUs. Cancel whenever you like: the next queue goes on where this one stopped.",
            inputs=[
                io.Model.Input("model", tooltip="The UNet that the predicted LoRAs are for. It stays as it is."),
                io.Clip.Input("clip", tooltip="The text encoder that the predicted words are for."),
                io.Vae.Input("vae", tooltip="The autoencoder of the model."),
                io.Int.Input(
                    "world_pictures",
                    default=3000,
                    min=1,
                    max=1_000_000,
                    tooltip="Without pictures of your own: so many of the demo model's drawn world, none of them of "
                    "the concepts that DemoImages shows.",
                ),
                io.Combo.Input(
                    "size",
                    options=[AUTO, *PRESETS],
                    default=AUTO,
                    tooltip="Of the network: tiny for the demo model, sd for Stable Diffusion.",
                ),
                io.Int.Input("rank", default=4, min=1, max=64, tooltip="Rank of the predicted LoRA."),
                io.Int.Input("steps", default=0, min=0, max=1_000_000, tooltip="0: what suits the model."),
                io.Int.Input("batch", default=0, min=0, max=1024, tooltip="Pictures a step. 0: what suits the model."),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=0.0000001,
                    tooltip="0: what suits the model.",
                ),
                io.Float.Input(
                    "contrastive_weight",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="How much it counts that a predicted word is near real words and far from other subjects' "
                    "words (lambda_c).",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Every random choice follows from it.",
                ),
                io.String.Input(
                    "name",
                    default="tuning-encoder",
                    tooltip="The file that is written into models/tuning_encoders; name_2 where that is taken.",
                ),
                io.Boolean.Input(
                    "continue_interrupted",
                    default=True,
                    tooltip="Go on with a cancelled training of exactly these inputs. Off: begin again.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Your own pictures, one subject each; the more the better."
                ),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=VISION_TIP),
            ],
            outputs=[
                TuningEncoderSocket.Output(display_name="tuning_encoder", tooltip="For PredictConcept."),
                LossMapSocket.Output(
                    display_name="loss", tooltip="Every step's loss, for the stock Plot Loss Graph node."
                ),
                io.String.Output(display_name="file", tooltip="The file's name in models/tuning_encoders."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        world_pictures: int,
        size: str,
        rank: int,
        steps: int,
        batch: int,
        learning_rate: float,
        contrastive_weight: float,
        seed: int,
        name: str,
        continue_interrupted: bool,
        images: torch.Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        root = first_folder(TUNING_ENCODERS)
        free = free_name(name.strip(), [root], NUMBER)
        adapted = ComfyModel(model, clip, vae)
        source = GivenPictures(images) if images is not None else WorldPictures(world_pictures, seed, say_place=True)
        given = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
        settings = EncoderPretrainSettings(
            **{
                **recommended_encoder(adapted),
                **({} if size == AUTO else {"preset": size}),
                **{key: value for key, value in given.items() if value != 0},
            },
            rank=rank,
            contrastive=contrastive_weight,
            seed=seed,
            checkpoint_every=50,
            preview_every=50,
            log_every=5,
        )
        work = InterruptedEncoder(cls.hidden.unique_id, adapted, image_encoder_of(clip_vision), source, settings)
        if not continue_interrupted:
            work.forget()
        finished = run_and_report(work, EncoderReporter(cls.hidden.unique_id, settings.steps))
        path = save_tuning_encoder(finished.encoder, root, free)
        losses = {key: values.tolist() for key, values in finished.losses.items()}
        file = path.relative_to(root.resolve()).as_posix()
        return io.NodeOutput(finished.encoder, {"loss": losses["diffusion"], **losses}, file)


def prediction_inputs() -> list[Any]:
    """What PredictConcept and TunePredictedConcept have in common, first."""
    return [
        TuningEncoderSocket.Input("tuning_encoder", tooltip="From LoadTuningEncoder, trained for this model."),
        io.Image.Input("image", tooltip="One picture with one subject, of any size; its middle square is looked at."),
        io.Model.Input("model", tooltip="The model that the encoder was trained for. It stays as it is."),
        io.Clip.Input("clip", tooltip="Its text encoder."),
        io.Vae.Input("vae", tooltip="Its autoencoder."),
        io.String.Input(
            "name",
            default="my-word",
            tooltip="What you will type: <name> or embedding:name. Letters, digits and _ - . + are allowed.",
        ),
        io.String.Input(
            "class_word",
            default="",
            tooltip="The ordinary word for what is on the picture. Empty: the word that the prediction is nearest to.",
        ),
    ]


class PredictConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "PredictConcept",
            display_name="Predict Concept",
            category=CATEGORY,
            description="A word and a LoRA for what is on one picture, in one look and without training.",
            inputs=[
                *prediction_inputs(),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=VISION_TIP),
            ],
            outputs=[
                ConceptSocket.Output(
                    display_name="concept", tooltip="For ApplyConcept, DualPath, SaveConcept and TunePredictedConcept."
                ),
                io.String.Output(display_name="hard_token", tooltip="The vocabulary's nearest word."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        tuning_encoder: TuningEncoder,
        image: torch.Tensor,
        model: Any,
        clip: Any,
        vae: Any,
        name: str,
        class_word: str,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        adapted = ComfyModel(model, clip, vae)
        concept = predict_concept(
            adapted,
            image_encoder_of(clip_vision),
            tuning_encoder,
            image,
            name=safe_name(name.strip()),
            class_word=class_word,
        )
        Reporter(cls.hidden.unique_id, 1).say(said(concept, "predicted"))
        return io.NodeOutput(concept, concept.hard_token)


class TunePredictedConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "TunePredictedConcept",
            display_name="Tune Predicted Concept",
            category=CATEGORY,
            description="Tunes a predicted word and its LoRA on their one picture, for a dozen steps at most. Predicts "
            "them first unless a concept is connected.",
            inputs=[
                *prediction_inputs(),
                io.Int.Input(
                    "steps",
                    default=MOST_STEPS,
                    min=1,
                    max=10_000,
                    tooltip=f"{MOST_STEPS} at most, unless more_steps allows more: the word would begin to hold this "
                    "one picture instead of its subject.",
                ),
                io.Int.Input("batch", default=4, min=1, max=64, tooltip="Noised copies of the picture a step."),
                io.Combo.Input(
                    "tuned",
                    options=[LORA_AND_VECTORS, LORA, VECTORS],
                    default=LORA_AND_VECTORS,
                    tooltip="What moves. The network that made the prediction never does.",
                ),
                io.Float.Input(
                    "lora_learning_rate",
                    default=0.0001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=0.0000001,
                    tooltip="How far each step moves the LoRA.",
                ),
                io.Float.Input(
                    "vector_learning_rate",
                    default=0.001,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    round=0.0000001,
                    tooltip="How far each step moves the word.",
                ),
                io.Float.Input(
                    "contrastive_weight",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="How much it counts that the word is near real words and far from others (lambda_c).",
                ),
                io.Float.Input(
                    "norm_weight",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="How much it counts that the word is not long (lambda_2).",
                ),
                io.Boolean.Input(
                    "dual_path",
                    default=True,
                    tooltip="Tune with both paths, as DualPath samples: the LoRA and the new word beside the plain "
                    "model and its nearest word.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With dual_path: the share of the new word's path. 1: that one alone.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Every random choice follows from it.",
                ),
                io.Boolean.Input("more_steps", default=False, advanced=True, tooltip="Allow more than twelve steps."),
                io.Boolean.Input(
                    "gradient_checkpointing", default=False, advanced=True, tooltip="Save memory, take longer."
                ),
                ConceptSocket.Input("concept", optional=True, tooltip="A prediction to go on from."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip=VISION_TIP),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="For ApplyConcept, DualPath and SaveConcept."),
                LossMapSocket.Output(
                    display_name="loss", tooltip="Every step's loss, for the stock Plot Loss Graph node."
                ),
                io.String.Output(display_name="hard_token", tooltip="The vocabulary's nearest word."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        tuning_encoder: TuningEncoder,
        image: torch.Tensor,
        model: Any,
        clip: Any,
        vae: Any,
        name: str,
        class_word: str,
        steps: int,
        batch: int,
        tuned: str,
        lora_learning_rate: float,
        vector_learning_rate: float,
        contrastive_weight: float,
        norm_weight: float,
        dual_path: bool,
        alpha: float,
        seed: int,
        more_steps: bool,
        gradient_checkpointing: bool,
        concept: Concept | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        settings = TuneSettings(
            steps=steps,
            batch=batch,
            tuned=tuned,
            lora_learning_rate=lora_learning_rate,
            vector_learning_rate=vector_learning_rate,
            contrastive=contrastive_weight,
            l2=norm_weight,
            alpha=alpha if dual_path else None,
            seed=seed,
            more_steps=more_steps,
            gradient_checkpointing=gradient_checkpointing,
        )
        run = tune(
            ComfyModel(model, clip, vae),
            image_encoder_of(clip_vision),
            tuning_encoder,
            image,
            settings,
            name=safe_name(name.strip()),
            class_word=class_word,
            predicted=concept,
        )
        finished = report(run, TuningReporter(cls.hidden.unique_id, steps))
        losses = {key: values.tolist() for key, values in finished.losses.items()}
        return io.NodeOutput(finished.concept, {"loss": losses["diffusion"], **losses}, finished.concept.hard_token)


class EncoderReporter(Reporter):
    """A pretraining's events on the node; `finished` is the last one."""

    def __call__(self, event: EncoderPretrainingEvent) -> None:
        if not isinstance(event, PretrainedEncoder):
            super().__call__(event)
            return
        self.finished = event
        self.say(f"pretrained in {event.step} steps, {event.seconds:.0f} s")


class TuningReporter(Reporter):
    """A tuning's events on the node."""

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Finished):
            self.say(said(event.concept, "tuned"))


class InterruptedEncoder(Resumable):
    """A tuning-encoder's pretraining."""

    def __init__(
        self,
        node_id: str,
        model: ComfyModel,
        images: ImageEncoder,
        pictures: PictureSource,
        settings: EncoderPretrainSettings,
    ) -> None:
        self.model, self.images, self.pictures = model, images, pictures
        facts = [str(node_id), model.fingerprint, images.fingerprint, pictures.state(), settings.identity()]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self.folder = checkpoints_root() / f"tuning-encoder-{key}"
        self.settings = replace(settings, checkpoint_dir=self.folder)

    def _train(self, resume: bool) -> Iterator[EncoderPretrainingEvent]:
        run = pretrain_encoder(
            self.model,
            self.images,
            self.pictures,
            self.settings,
            known=known_words(self.model),
            resume=self.folder if resume else None,
        )
        with closing(run):
            yield from run


def run_and_report(work: InterruptedEncoder, reporter: EncoderReporter) -> PretrainedEncoder:
    """Run a pretraining to its end. When it is cancelled, the steps so far wait in a checkpoint."""
    try:
        with closing(work.events()) as events:
            finished = report(events, reporter)
    except comfy.model_management.InterruptProcessingException:
        reporter.interrupted(work.kept())
        raise
    work.forget()
    return finished


def report(events: Iterator[Any], reporter: Reporter) -> Any:
    """Show every event; the last one. Cancelling ends it."""
    with closing(events):
        for event in events:
            reporter(event)
            comfy.model_management.throw_exception_if_processing_interrupted()
    return reporter.finished


def said(concept: Concept, what: str) -> str:
    """A line for the node: the nearest word, seconds and memory."""
    facts = concept.provenance[what]
    memory = facts["peak_bytes"] / 2**30
    return f"{what} <{concept.name}>, nearest word {concept.hard_token}, {facts['seconds']:.1f} s, {memory:.1f} GB"


def image_encoder_of(clip_vision: Any) -> ImageEncoder:
    """A CLIP_VISION behind our image encoder, the demo model's where none is connected."""
    if clip_vision is None:
        with torch.inference_mode(False):
            return ImageEncoder.tiny()
    tower = getattr(clip_vision.model, "vision_model", clip_vision.model)
    return ImageEncoder(
        tower,
        size=int(clip_vision.image_size),
        mean=clip_vision.image_mean,
        std=clip_vision.image_std,
        dtype=torch.float32,
        ready=lambda: comfy.model_management.load_model_gpu(clip_vision.patcher),
    )


def encoder_path(file: str) -> Path:
    """The path of one of LoadTuningEncoder's files. Raises ValueError that says what to do where it is not there."""
    if file == BUNDLED:
        path = tiny_weights_path("tuning_encoder")
        if not path.exists():
            raise ValueError("This version comes without a tuning-encoder; make one with PretrainTuningEncoder.")
        return path
    path = folder_paths.get_full_path(TUNING_ENCODERS, file) if file in files_of(TUNING_ENCODERS) else None
    if path is None:
        raise ValueError(f"There is no tuning-encoder {file!r}. Choose one from the list; press R to refresh it.")
    return Path(path)
