"""One heat map per word, as pictures, as masks, and as the data of the interactive viewer."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..core.inspection.attention.heat_pictures import mask_of, word_pictures
from ..core.inspection.attention.maps import AttentionMaps, normalised, stretched, word_maps
from ..core.prompts.words import PromptWord, chosen
from .attention import AttentionSocket, RecordedAttention
from .comfy.prompt_words import words_of
from .page.attention_view import UI_KEY, lost_results, viewer_data
from .schema.before_run import why_empty
from .schema.sockets import LOOK, PREFIX, searched_as

ALL, EACH, IN_COMMON = "all", "each word", "in common"
SIDES = {"16 cells": 16, "8 cells": 8, "32 cells": 32, "64 cells": 64}
TEXT_ENCODERS = ("auto", "clip_l", "clip_g", "t5xxl", "qwen25_7b", "qwen3_4b", "gemma2_2b", "pile_t5xl")
"""Those whose tokens a denoiser attends to; "auto" is the last of them that a model has."""
PREVIEW_SIDE = 512
"""Without a picture the maps are drawn this large."""


class ShowAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "ShowAttention",
            display_name="Show Attention",
            category=LOOK,
            search_aliases=searched_as(
                "attention map, cross attention, heatmap, heat map, DAAM, attention viewer, word mask, mask by word, "
                "segmentation"
            ),
            description="Where each word of the prompt looks: hover a word and its map lies over the picture. The same "
            "comes out as pictures and as masks.",
            inputs=[
                AttentionSocket.Input("attention", tooltip="From Record Attention or Attend Image."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="The positive prompt, exactly as it was encoded. Prompts that ConditioningConcat put one "
                    "behind another: all of them, with the word BREAK between.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture that was sampled. It lies under the maps, and makes this node wait for the "
                    "sampler.",
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="Instead of the picture: waits for the sampler as well."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that the prompt was encoded with. Needed where the prompt has a word "
                    "from Apply Concept.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words to draw, between commas: cat, red hat. Empty: every word.",
                ),
                io.Combo.Input(
                    "layers",
                    options=[ALL, "down", "middle", "up"],
                    default=ALL,
                    tooltip="Part of the UNet to look at.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=[ALL, *SIDES],
                    default="16 cells",
                    tooltip="Only layers whose maps are of this size, or nearest to it. 16 cells are what papers show "
                    "for 512-pixel pictures; the coarsest layers hardly tell one place from another.",
                ),
                io.Float.Input(
                    "start",
                    advanced=True,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="From this share of the sampling on.",
                ),
                io.Float.Input(
                    "end",
                    advanced=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="To this share of the sampling.",
                ),
                io.Combo.Input(
                    "normalise",
                    advanced=True,
                    options=[EACH, IN_COMMON],
                    default=EACH,
                    tooltip="Brightest where each word looks most, or one scale for all words of a picture, on which "
                    "weak words stay dark.",
                ),
                io.Float.Input(
                    "overlay",
                    advanced=True,
                    default=0.75,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How strongly the map covers the picture; 1 is the map alone.",
                ),
                io.Boolean.Input(
                    "captions", advanced=True, default=True, tooltip="Write the word into the corner of its picture."
                ),
                io.Boolean.Input(
                    "special_tokens",
                    advanced=True,
                    default=False,
                    tooltip="Also draw the start and end tokens, which take most of the attention.",
                ),
                io.Boolean.Input(
                    "padding",
                    advanced=True,
                    default=False,
                    tooltip="Also draw the empty positions behind the prompt, as one word.",
                ),
                io.String.Input(
                    "mask_words",
                    default="",
                    tooltip="Words whose regions make the mask, between commas. Empty: the words that are drawn.",
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The mask is 1 where a map is this far from its least to its most. 0: the soft map itself.",
                ),
                io.Int.Input(
                    "conditioning",
                    advanced=True,
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Where several positive prompts are combined: which of them.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=list(TEXT_ENCODERS),
                    default=TEXT_ENCODERS[0],
                    optional=True,
                    advanced=True,
                    tooltip="SD3.5, Flux, Qwen-Image, Z-Image and others: whose words are shown, where a model reads "
                    "the prompt with several text encoders. auto: the largest. These models need `clip`.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", tooltip="One picture for each word; all words of the first picture first."
                ),
                io.Mask.Output(display_name="masks", tooltip="One mask for each picture, for inpainting for example."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        # What ComfyUI remembers of this node names temporary files. Without them it has to be made anew.
        return lost_results()

    @classmethod
    def validate_inputs(
        cls, prompt: str | None = None, special_tokens: bool | None = None, padding: bool | None = None
    ) -> bool | str:
        # An empty prompt has these to draw, and a link may still say that they are.
        return True if None in (special_tokens, padding) or special_tokens or padding else why_empty(prompt=prompt)

    @classmethod
    def execute(
        cls,
        attention: RecordedAttention,
        prompt: str,
        words: str,
        layers: str,
        resolution: str,
        start: float,
        end: float,
        normalise: str,
        overlay: float,
        captions: bool,
        special_tokens: bool,
        padding: bool,
        mask_words: str,
        mask_threshold: float,
        conditioning: int,
        image: torch.Tensor | None = None,
        latent: Any = None,
        clip: Any = None,
        text_encoder: str = TEXT_ENCODERS[0],
    ) -> io.NodeOutput:
        require_sampled(attention, image if latent is None else latent["samples"])
        recorded = attention.recorder.maps(conditioning - 1)
        joint = any(group.part == "joint" for group in recorded.groups)
        found, tokens = words_of(prompt, clip, recorded.tokens, text_encoder, joint=joint)
        maps = recorded.for_prompt(tokens)
        pictures = fitting(image, maps.images)
        kinds = {"word", *(["special"] if special_tokens else []), *(["padding"] if padding else [])}
        drawn = chosen(found, words) or [word for word in found if word.kind in kinds]
        if not drawn:
            raise ValueError("The prompt has no words. Write the prompt that was sampled with.")
        options = {
            "layers": maps.layers_of(None if layers == ALL else layers, SIDES.get(resolution)),
            "steps": (start, end),
            "size": tuple(pictures.shape[1:3]) if pictures is not None else preview_size(maps),
        }
        heat = _heat(maps, drawn, options)
        masked = _heat(maps, chosen(found, mask_words), options) if mask_words.strip() else heat
        heat = normalised(heat, in_common=normalise == IN_COMMON)
        tiles = word_pictures(heat, [word.text for word in drawn], pictures, overlay, captions)
        return io.NodeOutput(
            tiles,
            mask_of(stretched(masked), mask_threshold),
            ui={UI_KEY: [viewer_data(cls, maps, found, prompt, options["layers"], pictures)]},
        )


def require_sampled(attention: RecordedAttention, sampled: torch.Tensor | None) -> None:
    """Raises ValueError that says what to do where this node may run before the sampler, nothing was recorded, or
    `sampled` (pictures or latents) is of an earlier sampling than the one that is in the recorder."""
    if attention.while_sampling and sampled is None:
        raise ValueError(
            "Connect the sampled picture to `image` (or the KSampler's output to `latent`): Show Attention has to wait "
            "until the model from Record Attention has been sampled."
        )
    if not attention.recorder.finished:
        raise ValueError(
            "No attention was recorded. Connect the model that comes out of Record Attention to the KSampler whose "
            "picture or latent is connected here."
        )
    if attention.while_sampling and not attention.belongs(sampled):
        if attention.recorder.samplings > 1:
            raise ValueError(
                f"The model from Record Attention was sampled {attention.recorder.samplings} times in this run, and "
                "the last alone is kept. Give each sampler a Record Attention of its own, or connect what comes out of "
                "the last one to `latent`."
            )
        raise ValueError(
            "ComfyUI remembered this picture, but not its attention: the model from Record Attention has sampled "
            "another one since. Change the seed, or anything else of the KSampler, to sample again."
        )


def fitting(image: torch.Tensor | None, images: int) -> torch.Tensor | None:
    """The picture under each recorded sample; one picture serves all. Raises ValueError for another number."""
    if image is None:
        return None
    if image.shape[0] not in (1, images):
        raise ValueError(f"{images} pictures were recorded and {image.shape[0]} are connected; they must be the same.")
    return image[..., :3].expand(images, -1, -1, -1)


def preview_size(maps: AttentionMaps) -> tuple[int, int]:
    """Whole multiples of the largest map's cells, about `PREVIEW_SIDE` on the longer side."""
    height, width = max(g.height for g in maps.groups), max(g.width for g in maps.groups)
    factor = max(1, PREVIEW_SIDE // max(height, width))
    return height * factor, width * factor


def _heat(maps: AttentionMaps, words: list[PromptWord], options: dict[str, Any]) -> torch.Tensor:
    return word_maps(maps, [word.positions for word in words], **options)
