"""The network that predicts a word and a LoRA from one picture: loaded from a file, or pretrained in the graph."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..core.files.tuning_encoder import load_tuning_encoder, save_tuning_encoder
from ..core.models.families import is_narrow, native_resolution
from ..core.models.tiny.weights import tiny_weights_path
from ..core.models.vocabulary import known_words
from ..core.networks.tuning_encoder import PRESETS
from ..core.training.one_picture.pictures import GivenPictures, WorldPictures
from ..core.training.one_picture.pretraining import PretrainedEncoder, pretrain_encoder
from ..core.training.one_picture.recipes import encoder_for
from ..core.training.one_picture.settings import EncoderPretrainSettings
from .comfy.adapting import with_unet
from .comfy.clip_vision import image_encoder_of
from .comfy.folders import TUNING_ENCODERS, first_folder, name_in, path_of, told, version
from .comfy.saving import NUMBER, checked_word, free_name, why_no_file
from .page.interrupted import Resumable
from .page.outlook import Outlook
from .page.reporting import Reporter, loss_map
from .page.running import report_resumable
from .page.saved_files import saved_output
from .schema import inputs
from .schema.lists import each_picture
from .schema.sockets import PREFIX, TRAIN, TuningEncoderSocket, searched_as


class LoadTuningEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadTuningEncoder",
            display_name="Load Tuning Encoder",
            category=TRAIN,
            search_aliases=searched_as("E4T, hypernetwork, image encoder"),
            description="A tuning-encoder: the network that makes a word and a LoRA of one picture. Each belongs to "
            "one model and to one CLIP vision model.",
            inputs=[inputs.network_file(TUNING_ENCODERS)],
            outputs=[
                TuningEncoderSocket.Output(
                    display_name="tuning_encoder", tooltip="For PredictConcept and TunePredictedConcept."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> object:
        return version(encoder_path, file)

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
            category=TRAIN,
            search_aliases=searched_as("train E4T, train hypernetwork, train image encoder"),
            description="Teaches a tuning-encoder to predict words, on many pictures with one subject each. Half "
            "an hour on a processor for the demo model; for Stable Diffusion use pretrain-encoder on GPUs.",
            inputs=[
                io.Model.Input("model", tooltip="The UNet that the predicted LoRAs are for. It stays as it is."),
                io.Clip.Input("clip", tooltip="The text encoder that the predicted words are for."),
                io.Vae.Input("vae", tooltip="The autoencoder of the model."),
                io.Int.Input(
                    "world_pictures",
                    default=3000,
                    min=1,
                    max=1_000_000,
                    tooltip="Without pictures of your own, for the demo model: so many of its drawn world, none of "
                    "them of the concepts that DemoImages shows.",
                ),
                io.Combo.Input(
                    "size",
                    options=[inputs.AUTO, *PRESETS],
                    default=inputs.AUTO,
                    tooltip="Of the network: tiny for the demo model, sd for Stable Diffusion.",
                ),
                io.Int.Input("rank", default=4, min=1, max=64, tooltip="Rank of the predicted LoRA."),
                io.Int.Input("steps", default=0, min=0, max=1_000_000, tooltip="0: what suits the model."),
                io.Int.Input("batch", default=0, min=0, max=1024, tooltip="Pictures a step. 0: what suits the model."),
                inputs.pretraining_rate("0: what suits the model."),
                inputs.contrastive_weight(
                    "How much it counts that a predicted word is near real words and far from other subjects' words"
                ),
                inputs.seed("Every random choice follows from it."),
                io.String.Input(
                    "name",
                    default="tuning-encoder",
                    tooltip="The file that is written into models/tuning_encoders; name_2 where that is taken.",
                ),
                inputs.continue_interrupted(),
                io.Image.Input(
                    "images", optional=True, tooltip="Your own pictures, one subject each; the more the better."
                ),
                inputs.clip_vision(),
            ],
            outputs=[
                TuningEncoderSocket.Output(display_name="tuning_encoder", tooltip="For PredictConcept."),
                inputs.losses(),
                io.String.Output(display_name="file", tooltip="The file's name in models/tuning_encoders."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        # Before the graph runs: it is written after hours.
        return why_no_file(name, NUMBER, [first_folder(TUNING_ENCODERS)])

    @classmethod
    def outlook(cls, narrow: bool, *, steps: int, batch: int, learning_rate: float, rank: int) -> Outlook:
        """What `execute` will do, with a model as `narrow` as the bundled one, or not."""
        return outlook_of(encoder_settings(narrow, steps=steps, batch=batch, learning_rate=learning_rate, rank=rank))

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
        images: torch.Tensor | list[torch.Tensor] | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        root, name = first_folder(TUNING_ENCODERS), checked_word(name.strip())
        adapted = with_unet(model, clip, vae)
        if images is None and native_resolution(adapted) is not None:
            raise ValueError(
                "Connect images with one subject each: the drawn world that stands in for them is the demo model's, "
                "and an encoder for Stable Diffusion would learn nothing else from it."
            )
        source = (
            GivenPictures(each_picture(images))
            if images is not None
            else WorldPictures(world_pictures, seed, say_place=True)
        )
        numbers = encoder_settings(is_narrow(adapted), steps=steps, batch=batch, learning_rate=learning_rate, rank=rank)
        settings = replace(
            numbers,
            preset=numbers.preset if size == inputs.AUTO else size,
            contrastive=contrastive_weight,
            seed=seed,
        )
        looking = image_encoder_of(clip_vision, adapted)
        facts = [str(cls.hidden.unique_id), adapted.fingerprint, adapted.applied, adapted.autoencoder]
        facts += [looking.fingerprint, source.state()]
        start = partial(pretrain_encoder, adapted, looking, source, known=known_words(adapted))
        work = Resumable("tuning-encoder", start, settings, [*facts, settings.identity()])
        reporter = Reporter(cls.hidden.unique_id, outlook_of(settings), conclusion)
        written: list[Path] = []

        def save(event: PretrainedEncoder) -> None:
            # Not before the training: another one may have taken the name while it ran.
            written.append(save_tuning_encoder(event.encoder, root, free_name(name, [root], NUMBER)))

        finished = report_resumable(work, reporter, continue_interrupted, save=save)
        outputs = finished.encoder, loss_map(finished.losses), name_in(root, written[0])
        return io.NodeOutput(*outputs, ui=saved_output([f"Saved {told(written[0])}"], {"file": written[0]}))


def encoder_settings(
    narrow: bool, *, steps: int, batch: int, learning_rate: float, rank: int
) -> EncoderPretrainSettings:
    """What suits a model as `narrow` as the bundled one, or one that is not, with the numbers that were chosen."""
    chosen = inputs.chosen(steps=steps, batch=batch, learning_rate=learning_rate)
    often = {"checkpoint_every": 50, "preview_every": 50, "log_every": 5}
    return EncoderPretrainSettings(**{**encoder_for(narrow), **chosen}, rank=rank, **often)


def outlook_of(settings: EncoderPretrainSettings) -> Outlook:
    """What the page says of a pretraining."""
    pictures = settings.steps // settings.preview_every
    return Outlook(settings.steps, settings.batch, settings.learning_rate, rank=settings.rank, pictures=pictures)


def conclusion(event: PretrainedEncoder) -> str:
    """What is said on the node in the end."""
    return f"pretrained in {event.step} steps, {event.seconds:.0f} s"


def encoder_path(file: str) -> Path:
    """The path of one of LoadTuningEncoder's files. Raises ValueError that says what to do where it is not there."""
    if file == inputs.BUNDLED:
        path = tiny_weights_path("tuning_encoder")
        if not path.exists():
            raise ValueError("This version comes without a tuning-encoder; make one with PretrainTuningEncoder.")
        return path
    return path_of(TUNING_ENCODERS, file, "tuning-encoder")
