"""The network that guesses masked words, which MLM needs: loaded from a file, pretrained in the graph, or saved."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..core.files.contextualizer import load_contextualizer, save_contextualizer
from ..core.maths.mlm import RHO
from ..core.models.protocol import TextEncoder
from ..core.models.tiny.contextualizer import load_contextualizer as load_bundled
from ..core.networks.contextualizer import PRESETS, Contextualizer
from ..core.prompts.captions import REAL_SHARE, captions_from, synthetic_captions
from ..core.training.contextualizer_pretraining import Pretrained, PretrainingEvent, PretrainSettings
from ..core.training.contextualizer_recipes import recommended_pretraining
from .clip_session import encoder_session, encoders_of
from .concepts import NUMBER, REFUSE, REPLACE, free_name
from .folders import CONTEXTUALIZERS, files_of, first_folder
from .interrupted import InterruptedPretraining
from .reporting import Reporter
from .sockets import CATEGORY, PREFIX, ContextualizerSocket, LossMapSocket

BUNDLED = "bundled: demo model"
AUTO = "auto (for this model)"
NONE = "none"
SYNTHETIC = ("concept_world", "pets", "objects")


class LoadContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "LoadContextualizer",
            display_name="Load Contextualizer",
            category=CATEGORY,
            description="A contextualizer for MLM: the small network that guesses masked words from what a text "
            "encoder says. Each belongs to one text encoder.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[BUNDLED, *files_of(CONTEXTUALIZERS)],
                    default=BUNDLED,
                    tooltip="The one that comes with this pack, for the demo model, or one in models/contextualizers.",
                ),
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
        # A file that was written anew under the same name counts as another input.
        try:
            facts = contextualizer_path(file).stat()
        except (OSError, ValueError):
            return None
        return facts.st_mtime_ns, facts.st_size

    @classmethod
    def execute(cls, file: str, clip: Any = None) -> io.NodeOutput:
        contextualizer = load_bundled() if file == BUNDLED else load_contextualizer(contextualizer_path(file))
        if clip is not None:
            encoders = encoders_of(clip)
            # By name where the CLIP has several; of a single one the error says how it differs.
            encoder = encoders.get(contextualizer.encoder.name, next(iter(encoders.values())))
            contextualizer.encoder.require(encoder)
        return io.NodeOutput(contextualizer)


class SaveContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "SaveContextualizer",
            display_name="Save Contextualizer",
            category=CATEGORY,
            description="Writes a contextualizer into models/contextualizers, with the text encoder that it belongs to "
            "and how it was trained. The file is written whole, read back and compared.",
            inputs=[
                ContextualizerSocket.Input("contextualizer", tooltip="From PretrainContextualizer."),
                io.String.Input(
                    "name",
                    default="contextualizer",
                    tooltip="File name. Letters, digits and _ - . + are allowed, and folders after a /.",
                ),
                io.Combo.Input(
                    "if_taken",
                    options=[NUMBER, REPLACE, REFUSE],
                    default=NUMBER,
                    tooltip="Where a file of this name exists: write name_2, overwrite it, or stop with an error.",
                ),
                io.Boolean.Input("half_precision", default=True, tooltip="float16: half the size, slightly rounded."),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="The file's name in models/contextualizers.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, contextualizer: Contextualizer, name: str, if_taken: str, half_precision: bool) -> io.NodeOutput:
        root = first_folder(CONTEXTUALIZERS)
        path = save_contextualizer(
            contextualizer,
            root,
            free_name(name.strip(), [root], if_taken),
            dtype=torch.float16 if half_precision else torch.float32,
            if_exists="replace" if if_taken == REPLACE else "error",
        )
        file = path.relative_to(root.resolve()).as_posix()
        return io.NodeOutput(file, ui=ui.PreviewText(f"Saved {path}"))


class PretrainContextualizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "PretrainContextualizer",
            display_name="Pretrain Contextualizer",
            category=CATEGORY,
            description="Teaches a small network to guess masked words from what the text encoder says, on captions. "
            "Needed once for a text encoder, not once for a word. Minutes for the demo model; for Stable Diffusion "
            "many hours on a GPU. Cancel whenever you like: the next queue goes on where this one stopped.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder to train it for. It stays as it is."),
                io.Combo.Input(
                    "text_encoder",
                    options=[AUTO, "clip_l", "clip_g", "clip_h"],
                    default=AUTO,
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
                    options=[NONE, *caption_files()],
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
                    options=[AUTO, *PRESETS],
                    default=AUTO,
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
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.00001,
                    round=0.0000001,
                    tooltip="0: what suits the text encoder, 0.0001 for Stable Diffusion.",
                ),
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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Every random choice follows from it: the same seed gives the same contextualizer.",
                ),
                io.Boolean.Input(
                    "continue_interrupted",
                    default=True,
                    tooltip="Go on with a cancelled training of exactly these inputs. Off: begin again.",
                ),
            ],
            outputs=[
                ContextualizerSocket.Output(
                    display_name="contextualizer", tooltip="For MLMRegularizer and SaveContextualizer."
                ),
                LossMapSocket.Output(
                    display_name="loss", tooltip="Every step's loss, for the stock Plot Loss Graph node."
                ),
                io.String.Output(
                    display_name="report", tooltip="How many held-out masked tokens it guesses, beside two floors."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: object) -> object:
        path = caption_path(file)
        return None if path is None or not path.is_file() else (path.stat().st_mtime_ns, path.stat().st_size)

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
        path = caption_path(file)
        source = captions_from(
            path if path is not None and path.suffix == ".txt" else None,
            [path] if path is not None and path.suffix == ".tar" else [],
            synthetic_captions(captions) if captions != NONE else None,
            real_share,
        )
        with encoder_session(clip) as encoders:
            encoder = chosen_encoder(encoders, text_encoder)
            numbers = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
            given = {name: value for name, value in numbers.items() if value != 0}
            given |= {} if size == AUTO else {"preset": size}
            settings = PretrainSettings(
                **{**recommended_pretraining(encoder), **given},
                rho=mask_rate,
                mode=loss_mode,
                held_out=held_out,
                seed=seed,
                log_every=10,
            )
            work = InterruptedPretraining(cls.hidden.unique_id, encoder, source, settings)
            if not continue_interrupted:
                work.forget()
            finished = pretrain_and_report(work, cls.hidden.unique_id)
        losses = {name: values.tolist() for name, values in finished.losses.items()}
        return io.NodeOutput(finished.contextualizer, losses, finished.held_out.summary())


class PretrainingReporter(Reporter):
    """A pretraining's events on the node; `pretrained` is the last one."""

    pretrained: Pretrained | None = None

    def __call__(self, event: PretrainingEvent) -> None:
        if not isinstance(event, Pretrained):
            super().__call__(event)
            return
        self.pretrained = event
        self.view.complete(event.losses, event.step)
        self.say(f"{event.step} steps, {event.seconds:.0f} s; {event.held_out.summary()}")


def pretrain_and_report(work: InterruptedPretraining, node_id: str) -> Pretrained:
    """Run a pretraining to its end. When it is cancelled, the steps so far wait in a checkpoint."""
    reporter = PretrainingReporter(node_id, work.settings.steps)
    try:
        with closing(work.events()) as events:
            for event in events:
                reporter(event)
                comfy.model_management.throw_exception_if_processing_interrupted()
    except comfy.model_management.InterruptProcessingException:
        reporter.interrupted(work.kept())
        raise
    work.forget()
    return reporter.pretrained


def chosen_encoder(encoders: dict[str, TextEncoder], name: str) -> TextEncoder:
    """The only text encoder, or the one called `name`. Raises ValueError that lists the choices."""
    if name == AUTO and len(encoders) == 1:
        return next(iter(encoders.values()))
    if name not in encoders:
        raise ValueError(f"This CLIP has the text encoders {', '.join(encoders)}; choose one of them in text_encoder.")
    return encoders[name]


def contextualizer_path(file: str) -> Path:
    """The path of a file in models/contextualizers. Raises ValueError where there is none of that name."""
    path = folder_paths.get_full_path(CONTEXTUALIZERS, file) if file in files_of(CONTEXTUALIZERS) else None
    if path is None:
        raise ValueError(f"There is no contextualizer {file!r}. Choose one from the list; press R to refresh it.")
    return Path(path)


def caption_files() -> list[str]:
    """Text files and webdataset shards in ComfyUI's input folder."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for ending in ("*.txt", "*.tar") for path in folder.glob(ending) if path.is_file())


def caption_path(file: str) -> Path | None:
    # The name alone: what is chosen lies in the input folder whatever a hand-written workflow says.
    return None if file == NONE else Path(folder_paths.get_input_directory()) / Path(file).name
