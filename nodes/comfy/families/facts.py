"""What differs between families of models, one entry each; everything else is found in the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Attends = Literal["joint", "cross", "unseen"]


@dataclass(frozen=True)
class Family:
    """One family, by ComfyUI's class of its model.

    `blocks` are the lists of blocks of its denoiser, in forward order; those in `apart` see text alone or image alone.
    `attends` says how image tokens look at the text: "joint", one attention over text and image, of which `text` says
    where the text is; "cross", the second attention of each block; or "unseen", where ComfyUI gives us no way to look.
    `lends` is the module that calls its attention without the options through which others look on. `aligned` says on
    which side text that the denoiser makes longer stays: "left" where something is put behind it. `resolution` is the
    side in pixels that it was trained at, `above` one too small for its code, and `learns` the text encoders whose rows
    learn by default, () for all.
    """

    title: str
    blocks: tuple[str, ...]
    attends: Attends = "joint"
    text: Literal["first", "last"] = "first"
    lends: str = ""
    apart: tuple[str, ...] = ()
    aligned: Literal["left", "right"] = "left"
    resolution: int = 1024
    above: int = 0
    learns: tuple[str, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "SD3": Family("SD3 / SD3.5", ("joint_blocks",)),
    "Flux": Family("Flux.1", ("double_blocks", "single_blocks")),
    "QwenImage": Family("Qwen-Image", ("transformer_blocks",)),
    "Lumina2": Family(
        "Z-Image / Lumina 2",
        ("context_refiner", "noise_refiner", "layers"),
        apart=("context_refiner", "noise_refiner"),
    ),
    "Chroma": Family("Chroma", ("double_blocks", "single_blocks")),
    "AuraFlow": Family("AuraFlow", ("double_layers", "single_layers"), aligned="right"),
    "PixArt": Family("PixArt", ("blocks",), "cross", lends="comfy.ldm.pixart.blocks", above=256),
    "HunyuanDiT": Family("HunyuanDiT", ("blocks",), "cross", lends="comfy.ldm.hydit.attn_layers"),
    "Flux2": Family("Flux.2", ("double_blocks", "single_blocks"), aligned="right"),
    "HiDream": Family("HiDream", ("double_stream_blocks", "single_stream_blocks"), text="last"),
    "Omnigen2": Family(
        "OmniGen2",
        ("context_refiner", "noise_refiner", "ref_image_refiner", "layers"),
        apart=("context_refiner", "noise_refiner", "ref_image_refiner"),
    ),
    "Kandinsky5Image": Family(
        "Kandinsky 5 Image",
        ("text_transformer_blocks", "visual_transformer_blocks"),
        "cross",
        apart=("text_transformer_blocks",),
    ),
    "HunyuanImage21": Family("Hunyuan Image 2.1", ("double_blocks", "single_blocks")),
    "WAN21": Family("Wan 2.1 / 2.2 (one frame)", ("blocks",), "cross", resolution=512),
    "Krea2": Family("Krea 2", ("blocks",)),
}
"""By the name of the class in ComfyUI's `model_base`, that class alone: those made from it take more than text."""
NAMES = ", ".join(family.title for family in FAMILIES.values())


def family_of(model: Any) -> Family | None:
    """The entry of a MODEL; None where it has none, as Stable Diffusion's UNets."""
    return FAMILIES.get(type(model.model).__name__)
