"""The node that gives a prompt two paths through every attention (METHODS.md 3.6; `two_paths.py` samples them)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..core.concept import Concept
from ..core.maths.dual_path import ALPHA
from ..core.models.dual_path import DualPath
from ..core.models.protocol import Conditioning
from ..core.models.vocabulary import hard_words
from ..core.wording import quoted
from .comfy.attention import cross_attention_layers
from .comfy.concept_tokenizer import leading_name, with_concept
from .comfy.families.facts import family_of
from .comfy.family_paths import JointPath, joint_count, nearest_token, with_joint_paths
from .comfy.lora_deltas import joint_deltas, known_names, unet_deltas, with_text_lora
from .comfy.text import text_encoders
from .comfy.two_paths import two_paths, with_two_paths
from .schema.before_run import why_empty
from .schema.sockets import PREFIX, USE, ConceptSocket, searched_as

EMBEDDING = "embedding:"


class DualPathNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "DualPath",
            display_name="Dual Path",
            category=USE,
            search_aliases=searched_as("blend prompts, soft and hard prompt, two paths, prompt fidelity"),
            description="Blends two readings of one prompt in every attention layer: the learned word with its LoRA "
            "(soft path), and the nearest real word with the untouched model (hard path). More of the prompt survives.",
            inputs=[
                io.Model.Input("model", tooltip="The model without the concept: this node adds its LoRA itself."),
                io.Clip.Input("clip", tooltip="Its text encoder. It need not know the word yet."),
                ConceptSocket.Input("concept", tooltip="From TrainConcept, LoadConcept or PredictConcept."),
                io.String.Input(
                    "prompt",
                    default="a photo of <my-concept> in the snow",
                    multiline=True,
                    tooltip="A prompt with the word, as <name> or embedding:name.",
                ),
                io.Float.Input(
                    "alpha",
                    default=ALPHA,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the soft path: 0 is the plain model with the real word, 1 the learned word "
                    "with its LoRA.",
                ),
                io.Combo.Input(
                    "modulated_path",
                    options=["soft", "hard"],
                    default="soft",
                    tooltip="Which path has the LoRA. soft is the paper; hard is the other pairing.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="From this part of the sampling on there are two paths; before it the hard one alone.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Until this part of the sampling there are two paths; after it the hard one alone.",
                ),
                io.String.Input(
                    "alpha_per_block",
                    default="",
                    optional=True,
                    tooltip="In place of alpha: one number for each attention block from input to output, separated by "
                    "commas (SD 1 and 2 have 16). Empty: alpha everywhere.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler. Without the conditioning beside it, it "
                                "is the model that came in."),
                io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler's positive input. In a "
                                       "model without two paths it is the prompt with the real word."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        return why_empty(prompt=prompt)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: Concept,
        prompt: str,
        alpha: float,
        modulated_path: str,
        start_percent: float,
        end_percent: float,
        alpha_per_block: str = "",
    ) -> io.NodeOutput:
        joint = family_of(model) is not None
        blocks = joint_count(model) if joint else len(cross_attention_layers(model.model.diffusion_model, {}))
        if concept.layer_vectors:
            raise ValueError(f"{concept.name!r} has a vector for every layer, which two paths cannot blend.")
        if start_percent > end_percent:
            raise ValueError(f"start_percent ({start_percent}) is after end_percent ({end_percent}).")
        share = blocks_of(alpha_per_block, alpha, blocks)
        sampling = model.get_model_object("model_sampling")
        window = tuple(float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
        ways = joint_ways if joint else crossed_ways
        hard, soft, path, said = ways(model, clip, concept, prompt, {"alpha": share, "modulated": modulated_path})
        conditioning = [two_paths(h, s, path, window) for h, s in zip(hard, soft, strict=True)]
        if not path.deltas:
            said += (
                f" {concept.name!r} has no LoRA for the model: both paths have its weights and differ in the prompt."
            )
        logging.info("Dual Path: %s", said)
        with_paths = with_joint_paths if joint else with_two_paths
        return io.NodeOutput(with_paths(model), conditioning, ui=ui.PreviewText(said))


Ways = tuple[list[Any], list[Any], DualPath, str]
"""The conditionings of the hard and the soft prompt, what is blended how, and what is said of the hard path."""


def crossed_ways(model: Any, clip: Any, concept: Concept, prompt: str, choices: Mapping[str, Any]) -> Ways:
    """Of a UNet with cross-attention: the hard prompt is the prompt with the word's nearest words."""
    words = concept.hard_token or hard_words(encoders_of(clip), concept.vectors)
    hard_prompt = with_words(prompt, concept.name, words)
    lora = known_names(model, concept.lora or {})
    path = DualPath(Conditioning(torch.empty(0)), unet_deltas(model, lora), **choices)
    soft_clip = with_text_lora(with_concept(clip, concept), lora)
    hard, soft = (c.encode_from_tokens_scheduled(c.tokenize(p)) for c, p in ((clip, hard_prompt), (soft_clip, prompt)))
    return hard, soft, path, f"Hard path: {hard_prompt!r}."


def joint_ways(model: Any, clip: Any, concept: Concept, prompt: str, choices: Mapping[str, Any]) -> Ways:
    """Of a model in which text and image are one sequence: the hard prompt has the nearest token in the place of each
    vector, so that both are of one length."""
    with_words(prompt, concept.name, "")
    nearest, said = nearest_token(clip, concept)
    lora = concept.lora or {}
    path = JointPath(Conditioning(torch.empty(0)), joint_deltas(model, lora), **choices)
    hard, soft = (
        c.encode_from_tokens_scheduled(c.tokenize(prompt))
        for c in (with_concept(clip, nearest), with_text_lora(with_concept(clip, concept), lora))
    )
    return hard, soft, path, f"Hard path: {prompt!r} with the nearest tokens ({said})."


def encoders_of(clip: Any) -> dict[str, Any]:
    """The text encoders of a CLIP by name. Raises ValueError where it is no CLIP of SD."""
    found = text_encoders(clip.patcher, clip.tokenizer, layer=None, pooled=None, ready=lambda: None)
    return {encoder.name: encoder for encoder in found}


def with_words(prompt: str, name: str, words: str) -> str:
    """`prompt` with `words` wherever the word stands, as `<name>` or `embedding:name`.

    Raises ValueError that shows what to type where the word does not stand in it.
    """
    found = prompt.replace(f"<{name}>", words)
    pieces = re.split(rf"(?:(?<=\s)|(?<=^)|(?<=\()){EMBEDDING}", found)
    for index, piece in enumerate(pieces[1:], 1):
        known = leading_name(piece, {name: None})
        pieces[index] = EMBEDDING + piece if known is None else words + piece[len(known) :]
    found = "".join(pieces)
    if found == prompt:
        raise ValueError(f"The prompt does not hold the word. Type <{name}> or {EMBEDDING}{name} where it belongs.")
    return found


def blocks_of(listed: str, alpha: float, blocks: int) -> float | tuple[float, ...]:
    """alpha, or the numbers of `listed`. Raises ValueError where one is none, or there are not as many as blocks."""
    parts = [part for part in re.split(r"[\s,;]+", listed.strip()) if part]
    if not parts:
        return alpha
    try:
        values = tuple(float(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"alpha_per_block takes numbers separated by commas, not {quoted(listed)}.") from error
    if not all(0 <= value <= 1 for value in values):  # nor one that is not finite
        raise ValueError(f"alpha_per_block holds numbers from 0 to 1, as alpha does, not {quoted(listed)}.")
    if len(values) != blocks:
        raise ValueError(f"This model has {blocks} attention blocks; alpha_per_block has {len(values)} numbers.")
    return values
