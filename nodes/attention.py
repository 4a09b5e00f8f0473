"""Seeing where each word of a prompt looks: recording while sampling, or of a picture that exists."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy_api.latest import io

from ..core.inspection.attention.recorder import AttentionRecorder
from ..core.wording import quoted
from .comfy.attention_recording import digest, layer_names, recording, recording_at
from .comfy.cancelling import hear_cancel
from .comfy.families.facts import family_of
from .schema.sockets import LOOK, PREFIX, searched_as

LAST_TIMESTEP = 999
LEAST_SIDE = 64
"""Pixels: eight latent cells, of which the UNet makes one in three halvings."""

AttentionSocket = io.Custom("ATTENTION")
"""A `RecordedAttention`."""


@dataclass(frozen=True)
class RecordedAttention:
    """`while_sampling` says that the recorder is filled by a sampler later on, and not full already."""

    recorder: AttentionRecorder
    while_sampling: bool
    _known: dict[str, str | None] = field(default_factory=dict)
    """By what came of a sampling, the sampling that was in the recorder when it first came along; None where there were
    several by then, and pictures do not tell which they come from."""

    def belongs(self, sampled: torch.Tensor) -> bool:
        """Whether the recorder still holds the sampling that pictures or latents come from. ComfyUI remembers results
        of many samplings, a recorder holds the last."""
        found, sampling = digest(sampled), self.recorder.sampling_digest
        known = self._known.setdefault(found, sampling if self.recorder.samplings == 1 else None)
        return sampling in (found, known)


class RecordAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "RecordAttention",
            display_name="Record Attention",
            category=LOOK,
            search_aliases=searched_as("cross attention, attention map, capture attention, save attention, DAAM"),
            description="Remembers where each word of the prompt looks while the model that comes out is sampled. The "
            "pictures stay exactly the same, with any sampler.",
            inputs=[
                io.Model.Input("model", tooltip="A text-to-image model, with any patches."),
                io.Int.Input(
                    "step_bins",
                    default=8,
                    min=1,
                    max=32,
                    tooltip="Stretches of the sampling that are kept apart, so that early and late steps can be "
                    "compared. Memory grows with it, and not with the number of steps.",
                ),
                io.Int.Input(
                    "cells",
                    default=32,
                    min=8,
                    max=128,
                    step=8,
                    tooltip="Larger maps are averaged down to at most this many cells a side before they are kept.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For one KSampler, of any kind."),
                AttentionSocket.Output(
                    display_name="attention",
                    tooltip="For Show Attention. It is filled by the sampler: give the picture or latent that comes "
                    "of the sampling to Show Attention as well.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, step_bins: int, cells: int) -> io.NodeOutput:
        recorder = AttentionRecorder(bins=step_bins, cells=cells)
        return io.NodeOutput(recording(model, recorder), RecordedAttention(recorder, while_sampling=True))


class AttendImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "AttendImage",
            display_name="Attend Image",
            category=LOOK,
            search_aliases=searched_as(
                "cross attention, attention map, attention of an image, inversion, segment by word, DAAM"
            ),
            description="Where each word of a prompt looks in a picture that exists. The picture is noised to a few "
            "timesteps and the model looks at each once; nothing is sampled.",
            inputs=[
                io.Model.Input("model", tooltip="A text-to-image model, with any patches."),
                io.Clip.Input("clip", tooltip="Its text encoder, behind Apply Concept where the prompt has its word."),
                io.Vae.Input("vae", tooltip="Its autoencoder."),
                io.Image.Input("image", tooltip="One picture or more; sides in whole multiples of 8 pixels are used."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the picture shows, or what you want to find in it. Weights and embeddings work.",
                ),
                io.String.Input(
                    "timesteps",
                    default="800, 600, 400, 200",
                    tooltip="Noise levels, 999 (nothing but noise) to 0 (the picture itself). Early ones see where "
                    "things are, late ones see textures.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of the noise.",
                ),
            ],
            outputs=[AttentionSocket.Output(display_name="attention", tooltip="For Show Attention.")],
        )

    @classmethod
    def validate_inputs(cls, timesteps: str = "0") -> bool | str:
        try:
            parsed_timesteps(timesteps)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: torch.Tensor, prompt: str, timesteps: str, seed: int
    ) -> io.NodeOutput:
        require_sides(image)
        recorder = AttentionRecorder()
        attend(model, clip, vae.encode(image[..., :3]), prompt, parsed_timesteps(timesteps), seed, recorder)
        return io.NodeOutput(RecordedAttention(recorder, while_sampling=False))


def require_sides(image: torch.Tensor) -> None:
    """Raises ValueError for pictures (N, H, W, 3) that are too small for a cell of the UNet's coarsest layer."""
    height, width = image.shape[1:3]
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"image is {width} x {height} pixels, and the model needs {LEAST_SIDE} a side to look at; enlarge it"
        )


def attend(
    model: Any, clip: Any, latents: torch.Tensor, prompt: str, timesteps: list[float], seed: int, recorder: Any
) -> None:
    """One pass over `latents` noised to each timestep, through ComfyUI's own sampling (a single step without
    guidance), so that whatever patches, hooks and conditioning a sampler would honour are in force."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    schedule = model.get_model_object("model_sampling")
    last = len(getattr(schedule, "sigmas", range(1000))) - 1
    if family_of(model) is not None:
        # Schedules of 10,000 steps too, of which 0 .. 999 are shares, and whose `sigma` counts from 0 to 1.
        timesteps = [timestep / LAST_TIMESTEP * last for timestep in timesteps]
    recorder.begin(layer_names(model))
    for timestep in sorted((min(timestep, last) for timestep in timesteps), reverse=True):
        hear_cancel()
        sigma = sigma_at(model, schedule, timestep)
        comfy.sample.sample_custom(
            recording_at(model, recorder, progress=1 - (timestep + 1) / (last + 1)),
            comfy.sample.prepare_noise(latents, seed),
            1.0,
            comfy.samplers.sampler_object("euler"),
            torch.stack([sigma.float().cpu(), torch.zeros(())]),
            conditioning,
            conditioning,
            latents,
            disable_pbar=True,
            seed=seed,
        )
    recorder.finish()


def sigma_at(model: Any, schedule: Any, timestep: float) -> torch.Tensor:
    """The sigma of a timestep, a number of the schedule's own table."""
    if family_of(model) is None:
        return schedule.sigma(torch.tensor(float(timestep)))
    return schedule.sigmas[round(timestep)]


def parsed_timesteps(text: str) -> list[float]:
    """Numbers from 0 to 999 between commas. Raises ValueError for anything else, or none."""
    try:
        found = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0 <= one <= 999 for one in found):
        raise ValueError(f"timesteps are numbers from 0 to 999 between commas, such as 800, 400, not {quoted(text)}")
    return found
