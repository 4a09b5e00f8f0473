"""Making one prompt work with the concepts that are in it (METHODS.md 1.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy_api.latest import io

from ..core.concept import Concept
from ..core.files import nameable
from ..core.models.families import drawn_resolution
from ..core.training.prompt_repair import BATCH, LEARNING_RATE, STEPS, draw, repair
from ..core.training.run.events import Finished
from ..core.training.trainer import TrainingRun
from .comfy.adapting import adapted
from .comfy.model import ComfyModel
from .page.interrupted import Resumable
from .page.live_view import OUTPUT
from .page.outlook import Outlook
from .page.reporting import Reporter, loss_map
from .page.running import report_resumable
from .schema import inputs
from .schema.before_run import why_empty
from .schema.sockets import PREFIX, TRAIN, ConceptSocket, LossMapSocket, searched_as

PICTURES, NOISE = "training pictures", "pure noise"
NO_LATENTS = "; on pure noise, since the concept kept no latents (Train Concept's keep_latents)"


class OptimizeForPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        concept = "It stays as it is; what comes out is for this prompt alone."
        return io.Schema(
            node_id=PREFIX + "OptimizeForPrompt",
            display_name="Optimize for Prompt",
            category=TRAIN,
            search_aliases=searched_as("prompt repair, fix prompt, prompt ignored, test-time optimization"),
            description="Repairs one prompt in which a word swallows the rest: ten steps on both losses of CoRe, "
            "without any picture. The concept that comes out is for this prompt alone.",
            inputs=[
                *inputs.concept_model(),
                io.Vae.Input("vae", tooltip="Its autoencoder, for the pictures before and after."),
                ConceptSocket.Input("concept", tooltip=f"A word from TrainConcept or LoadConcept. {concept}"),
                io.String.Input(
                    "prompt",
                    default="a photo of a {} in the snow",
                    multiline=True,
                    tooltip="The prompt to repair. <name> or embedding:name where a concept goes; {} is the first one. "
                    "Weights such as (red:1.2) are left out here.",
                ),
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=1000,
                    tooltip="How many steps. The paper takes 10 (METHODS.md 1.6).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=LEARNING_RATE,
                    min=0.0000001,
                    max=1.0,
                    step=inputs.FINE,
                    round=inputs.FINE,
                    tooltip="How far each step goes. The paper's code takes 0.0005 (METHODS.md 1.6).",
                ),
                io.Int.Input("batch", default=BATCH, min=1, max=64, tooltip="Latents a step (METHODS.md 1.6: 6)."),
                io.Combo.Input(
                    "latents",
                    options=[PICTURES, NOISE],
                    default=PICTURES,
                    tooltip="What the attention is looked at on. training pictures: those kept with the concept "
                    "(TrainConcept's keep_latents), noise where there are none. pure noise: at late timesteps.",
                ),
                inputs.seed("Of the repair and of both pictures."),
                io.Int.Input(
                    "width", default=0, min=0, max=4096, step=8, tooltip="Of the pictures. 0: the model's own."
                ),
                io.Int.Input("height", default=0, min=0, max=4096, step=8, tooltip="Of the pictures. 0: as the width."),
                ConceptSocket.Input("concept_2", optional=True, tooltip=f"Another concept in the prompt. {concept}"),
                ConceptSocket.Input("concept_3", optional=True, tooltip=f"Another concept in the prompt. {concept}"),
            ],
            outputs=[
                ConceptSocket.Output(display_name="concept", tooltip="The first concept, for this prompt."),
                io.Image.Output(display_name="pictures", tooltip="The prompt before and after, with the same seed."),
                LossMapSocket.Output(display_name="loss", tooltip="Every step's loss."),
                ConceptSocket.Output(display_name="concept_2", tooltip="The second concept, if there is one."),
                ConceptSocket.Output(display_name="concept_3", tooltip="The third concept, if there is one."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        return why_empty(prompt=prompt)

    @classmethod
    def outlook(cls, narrow: bool, *, steps: int, learning_rate: float, batch: int) -> Outlook:
        """What `execute` will do; it takes no numbers from a recipe."""
        return Outlook(steps, batch, learning_rate)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        concept: Concept,
        prompt: str,
        steps: int,
        learning_rate: float,
        batch: int,
        latents: str,
        seed: int,
        width: int,
        height: int,
        concept_2: Concept | None = None,
        concept_3: Concept | None = None,
    ) -> io.NodeOutput:
        given = [concept, concept_2, concept_3]
        concepts = [one for one in given if one is not None]
        subject = adapted(model, clip, vae)
        width = width or drawn_resolution(subject)
        size = (height or width, width)
        options = {"steps": steps, "learning_rate": learning_rate, "batch": batch, "seed": seed}
        if latents == NOISE or concept.latents is None:
            options["noise_side"] = width // subject.latent_factor
        prompt = unweighted(prompt)
        work = _Work(cls.hidden.unique_id, subject, concepts, prompt, options)
        lacking = latents == PICTURES and concept.latents is None
        outlook = cls.outlook(False, steps=steps, learning_rate=learning_rate, batch=batch)
        reporter = Reporter(cls.hidden.unique_id, outlook, remark=NO_LATENTS if lacking else "")
        finished = report_resumable(work, reporter, go_on=True, stop=work.stop, learned=work.learned)
        losses, repaired = loss_map(finished.losses), work.repaired
        with subject.session():
            pictures = [draw(subject, those, prompt, size=size, seed=seed) for those in (concepts, repaired)]
        by_name = dict(zip((one.name for one in concepts), repaired, strict=True))
        first, second, third = (None if one is None else by_name[one.name] for one in given)
        return io.NodeOutput(first, torch.cat(pictures), losses, second, third, ui={OUTPUT: [reporter.view.whole()]})


@dataclass(frozen=True)
class _Choices:
    """Of a repair, what `Resumable` asks for."""

    options: Mapping[str, Any]
    checkpoint_dir: Path | None = None


class _Work(Resumable):
    """A repair that waits where it was cancelled, and its concepts until the first is saved: on a processor each step
    takes minutes."""

    def __init__(
        self, node_id: str, model: ComfyModel, concepts: Sequence[Concept], prompt: str, options: Mapping[str, Any]
    ) -> None:
        facts = {
            "node": str(node_id),
            "model": model.fingerprint,
            "applied": model.applied,
            "encoders": {name: encoder.fingerprint for name, encoder in model.text_encoders.items()},
            "concepts": [[one.name, one.class_word] for one in concepts],
            "prompt": prompt,
            "options": options,
        }
        parts = [part for one in concepts for part in (one.vectors, one.layer_vectors or {}, one.lora or {})]
        tensors = [part[name] for part in parts for name in sorted(part)]
        self._begin = partial(repair, model, concepts, prompt, **options)
        subject = [str(node_id), prompt]
        super().__init__(
            nameable(concepts[0].name),
            self._started,
            _Choices(options),
            facts,
            [*tensors, concepts[0].latents],
            subject,
        )

    def _started(self, settings: _Choices, resume: Path | None) -> TrainingRun:
        self._repair = self._begin(checkpoint_dir=settings.checkpoint_dir, resume=resume)
        return self._repair.run

    def learned(self, event: Finished) -> Concept:
        """The first of the repaired concepts; all of them are `repaired` then."""
        self.repaired = self._repair.concepts
        return self.repaired[0]


def unweighted(prompt: str) -> str:
    """`prompt` without ComfyUI's weights, which are no part of what a text encoder reads."""
    return unescape_important("".join(text for text, _ in token_weights(escape_important(prompt), 1.0)))
