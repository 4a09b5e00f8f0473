"""Inputs and outputs that several nodes have, and what their values mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ...core.concept import PLACEHOLDER
from ...core.training.presets import Preset, preset_for, recipes
from ..comfy.folders import files_of
from ..comfy.saving import NUMBER, REFUSE, REPLACE
from .sockets import LossMapSocket

FINE = 1e-7
"""The step of rates and weights, and what they are rounded to: the page shows as many digits as the step has, so that
what is kept is what is seen."""
AUTO = "auto (for this model)"
BUNDLED = "bundled: demo model"
WHERE_IT_COUNTS, TRANSPARENCY = "where it counts", "transparency, on white"
ZERO_AS_RECIPE = "0: as the recipe says."


def chosen(**numbers: float) -> dict[str, float]:
    """Those of `numbers` that were set: 0 leaves one to the recipe, or to what suits the model."""
    return {name: value for name, value in numbers.items() if value != 0}


def seed(tooltip: str) -> Any:
    """A seed that stays what it is until somebody changes it."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**32 - 1,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
    )


def word_name() -> Any:
    return io.String.Input(
        "name",
        default="my-word",
        tooltip="What you will type: <name> or embedding:name. Letters, digits and _ - . + are allowed.",
    )


def concept_model() -> list[Any]:
    """The model that an earlier training made a concept for, and its CLIP."""
    return [
        io.Model.Input("model", tooltip="The model that the concept was trained on. It stays as it is."),
        io.Clip.Input("clip", tooltip="Its text encoder. It stays as it is."),
    ]


def continue_interrupted() -> Any:
    return io.Boolean.Input(
        "continue_interrupted",
        default=True,
        advanced=True,
        tooltip="Go on with a training of exactly these inputs that was cancelled, or that ended and was not saved. "
        "Off: begin again.",
    )


def masks(counts: str) -> Any:
    return io.Mask.Input(
        "masks",
        optional=True,
        tooltip=f"Where the thing is, one mask a picture{counts}. What Load Image gives is the transparent part: for "
        "cut-out things put Invert Mask behind it.",
    )


def masks_mean() -> Any:
    return io.Combo.Input(
        "masks_mean",
        options=[WHERE_IT_COUNTS, TRANSPARENCY],
        default=WHERE_IT_COUNTS,
        optional=True,
        advanced=True,
        tooltip="where it counts: only there the picture teaches. transparency, on white: what Load Image gives of a "
        "cut-out, as it comes; the picture is put on white there, and all of it counts.",
    )


def captions() -> Any:
    """A prompt of each picture's own."""
    return io.String.Input(
        "captions",
        default="",
        multiline=True,
        optional=True,
        advanced=True,
        tooltip="What each picture shows, one line a picture in their order, with {} or the class word where the new "
        "word goes: a photo of {} in the snow. Lines with neither, and empty: the recipe's prompts.",
    )


def recipe(methods: Iterable[str], tooltip: str) -> Any:
    """The recipes for any of `methods`. What each comes from is on the node's help page."""
    return io.Combo.Input("recipe", options=[AUTO, *recipes(methods)], default=AUTO, tooltip=tooltip)


def chosen_recipe(name: str, narrow: bool, method: str) -> Preset:
    """The recipe called `name` for `method`, or for `AUTO` the one that suits a model as `narrow` as the bundled one,
    or one that is not.

    A recipe of another method keeps its numbers and trains `method`. Raises ValueError as `Preset.training`, or where
    no recipe suits.
    """
    return preset_for(narrow, method) if name == AUTO else recipes()[name].training(method)


def training_steps() -> Any:
    return io.Int.Input("steps", default=0, min=0, max=100_000, tooltip=f"How long to train. {ZERO_AS_RECIPE}")


def training_batch() -> Any:
    return io.Int.Input(
        "batch",
        default=0,
        min=0,
        max=64,
        advanced=True,
        tooltip=f"Pictures a step; fewer need less memory. {ZERO_AS_RECIPE}",
    )


def previews(every: str, prompt: str) -> list[Any]:
    """How often pictures of the word are drawn, and of what."""
    return [
        io.Int.Input("preview_every", default=50, min=0, max=10_000, advanced=True, tooltip=every),
        io.String.Input("preview_prompt", default=f"a photo of a {PLACEHOLDER}", tooltip=prompt),
    ]


def memory_savers() -> list[Any]:
    """What makes a training need less memory."""
    return [
        io.Int.Input(
            "resolution",
            default=0,
            optional=True,
            min=0,
            max=4096,
            step=64,
            advanced=True,
            tooltip="Side of the square that is cut from the middle of each picture, in pixels. 0: the model's own, "
            "512 for Stable Diffusion 1, 1024 for SDXL. Fewer need less memory.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Save memory, take longer. What is learned is the same.",
        ),
    ]


def regularize_every() -> Any:
    """How seldom regularizers are asked."""
    return io.Int.Input(
        "regularize_every",
        default=1,
        optional=True,
        min=1,
        max=100,
        advanced=True,
        tooltip="1: regularizers are asked in every step. 2: in every second one, with twice the weight: the same on "
        "average, in less time. And so on.",
    )


def pretraining_rate(tooltip: str) -> Any:
    return io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=FINE, round=FINE, tooltip=tooltip)


def contrastive_weight(tooltip: str) -> Any:
    return io.Float.Input(
        "contrastive_weight", default=0.01, min=0.0, max=10.0, step=FINE, round=FINE, tooltip=f"{tooltip} (lambda_c)."
    )


def clip_vision() -> Any:
    return io.ClipVision.Input(
        "clip_vision",
        optional=True,
        tooltip="The CLIP vision model that the encoder was trained with, from a stock Load CLIP Vision node. The demo "
        "model's own comes with this pack: leave this open.",
    )


def network_file(kind: str) -> Any:
    """The bundled network, or a file of `kind`."""
    return io.Combo.Input(
        "file",
        options=[BUNDLED, *files_of(kind)],
        default=BUNDLED,
        tooltip=f"The one that comes with this pack, for the demo model, or one in models/{kind}.",
    )


def if_taken(tooltip: str) -> Any:
    return io.Combo.Input("if_taken", options=[NUMBER, REPLACE, REFUSE], default=NUMBER, tooltip=tooltip)


def half_precision(default: bool) -> Any:
    return io.Boolean.Input("half_precision", default=default, tooltip="float16: half the size, slightly rounded.")


def losses() -> Any:
    """The output that the stock Plot Loss Graph node draws."""
    return LossMapSocket.Output(display_name="loss", tooltip="Every step's loss, for the stock Plot Loss Graph node.")
