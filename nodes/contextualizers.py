"""The network that guesses masked words, which MLM needs: loaded from a file, pretrained in the graph, or saved."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..core.files.contextualizer import load_contextualizer, save_contextualizer
from ..core.maths.mlm import RHO
from ..core.models.families import NARROWEST
from ..core.models.protocol import TextEncoder
from ..core.models.tiny.contextualizer import load_contextualizer as load_bundled
from ..core.networks.contextualizer import PRESETS, Contextualizer
from ..core.prompt_sets import synthetic_captions
from ..core.prompts.captions import REAL_SHARE, captions_from
from ..core.training.contextualizer.pretraining import Pretrained, PretrainSettings, pretrain_contextualizer
from ..core.training.contextualizer.recipes import pretraining_for, vocabulary_for
from .comfy.cancelling import hear_cancel
from .comfy.clip_session import content_of, encoder_session, encoders_of
from .comfy.folders import CONTEXTUALIZERS, NONE, first_folder, input_files, input_path, name_in, path_of, told, version
from .comfy.saving import free_name, why_no_file, written_as
from .page.interrupted import Resumable, saved, waiting
from .page.live_view import OUTPUT
from .page.outlook import Outlook
from .page.reporting import Reporter, loss_map
from .page.running import report_resumable
from .page.saved_files import saved_output
from .schema import inputs
from .schema.sockets import PREFIX, TRAIN, ContextualizerSocket, searched_as

SYNTHETIC = ("concept_world", "pets", "objects")


class LoadContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadContextualizer",
            display_name="Load Contextualizer",
            category=TRAIN,
            search_aliases=searched_as("masked language model, MLM model, BERT"),
            description="A contextualizer for MLM: the small network that guesses masked words from what a text "
            "encoder says. Each belongs to one text encoder.",
            inputs=[
                inputs.network_file(CONTEXTUALIZERS),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Checks at once that the contextualizer was trained on this text encoder.",
                ),
            ],
            outputs=[ContextualizerSocket.Output(display_name="contextualizer", tooltip="For MLMRegularizer.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        return version(contextualizer_path, file)

    @classmethod
    def execute(cls, file: str, clip: Any = None) -> io.NodeOutput:
        contextualizer = load_bundled() if file == inputs.BUNDLED else load_contextualizer(contextualizer_path(file))
        if clip is not None:
            encoders = encoders_of(clip)
            # By name where the CLIP has several; of a single one the error says how it differs.
            encoder = encoders.get(contextualizer.encoder.name, next(iter(encoders.values())))
            contextualizer.encoder.require(encoder)
        return io.NodeOutput(contextualizer)


class PretrainContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "PretrainContextualizer",
            display_name="Pretrain Contextualizer",
            category=TRAIN,
            search_aliases=searched_as("train masked language model, train MLM model, train BERT"),
            description="Teaches a small network to guess masked words, once for a text encoder. Minutes for the "
            "demo model, for Stable Diffusion many hours on a GPU. Cancel whenever you like: the next run goes on.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder to train it for. It stays as it is."),
                io.Combo.Input(
                    "text_encoder",
                    options=[inputs.AUTO, "clip_l", "clip_g", "clip_h", "t5xxl", "qwen25_7b", "qwen3_4b", "gemma2_2b"],
                    default=inputs.AUTO,
                    tooltip="Which one, where the CLIP has several (SDXL has clip_l and clip_g).",
                ),
                io.Combo.Input(
                    "captions",
                    options=[*SYNTHETIC, NONE],
                    default="concept_world",
                    tooltip="Built-in sentences: what the demo model knows, or thousands about pets or objects. They "
                    "are mixed with a file if one is chosen.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NONE, *input_files(".txt", ".tar")],
                    default=NONE,
                    tooltip="Captions of real pictures in ComfyUI's input folder: a .txt file, one a line, or a "
                    "webdataset shard (.tar) with .txt members.",
                ),
                io.Float.Input(
                    "real_share",
                    default=REAL_SHARE,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With both: how many of the captions come from the file. The paper takes 0.7.",
                ),
                io.Combo.Input(
                    "size",
                    options=[inputs.AUTO, *PRESETS],
                    default=inputs.AUTO,
                    tooltip="The paper's network; short: the same for prompts of at most 22 tokens, which makes MLM "
                    "three times cheaper; tiny: for the demo model.",
                ),
                io.Combo.Input(
                    "loss_mode",
                    options=["non_padding", "masked"],
                    default="non_padding",
                    tooltip="Ask for every token, masked ones five times as much (the authors' code), or for the "
                    "masked ones alone (the paper's text).",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="0: what suits the text encoder, for Stable Diffusion 100,000.",
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Captions a step. 0: what suits the text encoder, for Stable Diffusion 300.",
                ),
                inputs.pretraining_rate("0: what suits the text encoder, 0.0001 for Stable Diffusion."),
                io.Float.Input(
                    "mask_rate",
                    default=RHO,
                    min=0.01,
                    max=0.95,
                    step=0.01,
                    tooltip="How probably a token is masked (rho).",
                ),
                io.Int.Input(
                    "held_out",
                    default=2000,
                    min=10,
                    max=100_000,
                    tooltip="Captions that are never trained on and guessed at the end, to say how good it is.",
                ),
                inputs.seed("Every random choice follows from it: the same seed gives the same contextualizer."),
                inputs.continue_interrupted(),
            ],
            outputs=[
                ContextualizerSocket.Output(
                    display_name="contextualizer", tooltip="For MLMRegularizer and SaveContextualizer."
                ),
                inputs.losses(),
                io.String.Output(
                    display_name="report", tooltip="How many held-out masked tokens it guesses, beside two floors."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        return version(input_path, file)

    @classmethod
    def outlook(cls, narrow: bool, *, steps: int, batch: int, learning_rate: float) -> Outlook:
        """What `execute` will do, with a text encoder as `narrow` as the bundled one, or not."""
        return outlook_of(pretraining_settings(narrow, steps=steps, batch=batch, learning_rate=learning_rate))

    @classmethod
    def execute(
        cls,
        clip: Any,
        text_encoder: str,
        captions: str,
        file: str,
        real_share: float,
        size: str,
        loss_mode: str,
        steps: int,
        batch: int,
        learning_rate: float,
        mask_rate: float,
        held_out: int,
        seed: int,
        continue_interrupted: bool,
    ) -> io.NodeOutput:
        path = input_path(file)
        source = captions_from(
            path if path is not None and path.suffix == ".txt" else None,
            [path] if path is not None and path.suffix == ".tar" else [],
            synthetic_captions(captions) if captions != NONE else None,
            real_share,
        )
        with encoder_session(clip) as encoders:
            encoder = chosen_encoder(encoders, text_encoder)
            numbers = pretraining_settings(
                encoder.width < NARROWEST, steps=steps, batch=batch, learning_rate=learning_rate
            )
            settings = replace(
                numbers,
                **vocabulary_for(encoder),
                preset=numbers.preset if size == inputs.AUTO else size,
                rho=mask_rate,
                mode=loss_mode,
                held_out=held_out,
                seed=seed,
                log_every=10,
            )
            facts = {
                "node": str(cls.hidden.unique_id),
                "encoder": [encoder.fingerprint, content_of(encoder)],
                "captions": source.state(),
                "settings": settings.identity(),
            }
            start = partial(pretrain_contextualizer, encoder, source, between=hear_cancel)
            subject = [facts["node"], facts["encoder"]]
            work = Resumable("contextualizer", start, settings, facts, subject=subject)
            reporter = Reporter(cls.hidden.unique_id, outlook_of(settings), conclusion)
            finished = report_resumable(
                work, reporter, continue_interrupted, learned=lambda event: event.contextualizer
            )
        shown = {OUTPUT: [reporter.view.whole()]}
        return io.NodeOutput(finished.contextualizer, loss_map(finished.losses), finished.held_out.summary(), ui=shown)


class SaveContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "SaveContextualizer",
            display_name="Save Contextualizer",
            category=TRAIN,
            search_aliases=searched_as("save masked language model, save MLM model"),
            description="Writes a contextualizer into models/contextualizers, with the text encoder that it belongs to "
            "and how it was trained. The file is written whole, read back and compared.",
            inputs=[
                ContextualizerSocket.Input("contextualizer", tooltip="From PretrainContextualizer."),
                io.String.Input(
                    "name",
                    default="contextualizer",
                    tooltip="File name. Letters, digits and _ - . + are allowed, and folders after a /.",
                ),
                inputs.if_taken("Where a file of this name exists: write name_2, overwrite it, or stop with an error."),
                inputs.half_precision(True),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name in models/contextualizers.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None, if_taken: str | None = None) -> bool | str:
        # Before the graph runs: what is pretrained in it may take hours.
        return why_no_file(name, if_taken, [first_folder(CONTEXTUALIZERS)])

    @classmethod
    def execute(cls, contextualizer: Contextualizer, name: str, if_taken: str, half_precision: bool) -> io.NodeOutput:
        root = first_folder(CONTEXTUALIZERS)
        free = free_name(name.strip(), [root], if_taken)
        with waiting(contextualizer):
            path = save_contextualizer(contextualizer, root, free, **written_as(if_taken, half_precision))
        saved(contextualizer)
        return io.NodeOutput(name_in(root, path), ui=saved_output([f"Saved {told(path)}"], {"file": path}))


def pretraining_settings(narrow: bool, *, steps: int, batch: int, learning_rate: float) -> PretrainSettings:
    """What suits an encoder as `narrow` as the bundled one, or one that is not, with the numbers that were chosen."""
    chosen = inputs.chosen(steps=steps, batch=batch, learning_rate=learning_rate)
    return PretrainSettings(**{**pretraining_for(narrow), **chosen})


def outlook_of(settings: PretrainSettings) -> Outlook:
    """What the page says of a pretraining."""
    return Outlook(settings.steps, settings.batch, settings.learning_rate)


def contextualizer_path(file: str) -> Path:
    """The path of a file in models/contextualizers. Raises ValueError where there is none of that name."""
    return path_of(CONTEXTUALIZERS, file, "contextualizer")


def conclusion(event: Pretrained) -> str:
    """What is said on the node in the end."""
    return f"{event.step} steps, {event.seconds:.0f} s; {event.held_out.summary()}"


def chosen_encoder(encoders: dict[str, TextEncoder], name: str) -> TextEncoder:
    """The only text encoder, or the one called `name`. Raises ValueError that lists the choices."""
    if name == inputs.AUTO and len(encoders) == 1:
        return next(iter(encoders.values()))
    if name not in encoders:
        raise ValueError(f"This CLIP has the text encoders {', '.join(encoders)}; choose one of them in text_encoder.")
    return encoders[name]
