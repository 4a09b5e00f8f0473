"""What ComfyUI loads beside the families that can be trained on, and why each cannot."""

from __future__ import annotations

from collections.abc import Mapping

VIDEO, SOUND, THINGS = "makes videos", "makes sound", "makes things in 3D"
PICTURE = "takes a picture beside the text"
NO_PICTURE = "draws nothing"
UNTRIED = "draws from text, but nobody has tried to train on it"

_OF: Mapping[str, tuple[str, ...]] = {
    VIDEO: (
        "GenmoMochi", "LTXV", "LTXAV", "MiniMaxH3", "HunyuanVideo", "HunyuanVideo15", "CosmosVideo", "Kandinsky5",
        "CogVideoX", "WAN22", "WAN21_CausalAR",
    ),
    "makes videos of what else it is given": (
        "SVD_img2vid", "SV3D_u", "SV3D_p", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "HunyuanVideo15_SR_Distilled",
        "WAN21_Vace", "WAN21_Camera", "WAN21_HuMo", "WAN22_S2V", "WAN22_Animate", "WAN_Animate2", "WAN21_FlowRVS",
        "WAN21_SCAIL", "WAN21_SCAIL2", "WAN22_WanDancer", "SeedVR2",
    ),
    SOUND: ("StableAudio1", "StableAudio3", "ACEStep", "ACEStep15", "MiniMaxMusic3"),
    THINGS: ("Hunyuan3Dv2", "Hunyuan3Dv2_1", "TripoSplat", "Trellis2", "Stable_Zero123"),
    PICTURE: (
        "SD15_instructpix2pix", "SDXL_instructpix2pix", "SD21UNCLIP", "SD_X4Upscaler", "SDXLRefiner",
        "HunyuanImage21Refiner", "PiD", "JoyImage",
    ),
    NO_PICTURE: ("Lotus", "RT_DETR_v4", "SAM3", "DepthAnything3"),
    "draws in two stages, of which neither is a whole": ("StableCascade_C", "StableCascade_B"),
    "draws in pixels and not in latents": ("ChromaRadiance", "ZImagePixelSpace", "PixelDiTT2I", "HiDreamO1"),
    "predicts what is neither flow, epsilon nor v": ("CosmosPredict2",),
    "sets its positions where nobody passes who asks the denoiser alone": ("LongCatImage",),
    "reads each prompt with two tokenizers at once": ("Anima",),
    UNTRIED: ("Boogu", "MageFlow", "Ideogram4", "Lens", "ErnieImage"),
}  # fmt: skip
REFUSED: Mapping[str, str] = {name: reason for reason, names in _OF.items() for name in names}
"""Why, by the name of the class in ComfyUI's `model_base`."""


def why_refused(base: object) -> str:
    """The reason for a model, with its name; "" where none is known."""
    name = type(base).__name__
    return f"{name} {REFUSED[name]}" if name in REFUSED else ""
