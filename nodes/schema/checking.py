"""What every node asks of its inputs before it does anything, whoever made the graph.

ComfyUI checks what was typed into a widget, not what comes along a link; NaN passes its limits, and a number may stand
where a model belongs. Here each input is asked by its kind, and what belongs together is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_api.latest import io
from server import PromptServer

from ...core.maths.finite import require_finite
from ...core.prompts.phrases import checked_phrase, checked_text
from ...core.wording import MOST, listed, quoted, shortened
from ..comfy import fitting
from .lists import TEXTS, gathered

LONGEST_TEXT = 5_000_000
"""Characters of an input of many lines: tens of thousands of prompts."""
FILE_INPUTS = ("file", "clip", "dino")
"""Choices that are names of files: the nodes themselves say which file goes where."""
MEMBERS = {
    "PROMPTS": ("prompts", "drawn"),
    "REGULARIZER": ("added", "chosen_norm_mode"),
    "CONCEPT": ("vectors", "class_word", "lora"),
    "CONTEXTUALIZER": ("encoder", "positions", "rows"),
    "TUNING_ENCODER": ("identity", "negatives"),
    "MODEL": ("model", "model_options", "clone"),
    "CLIP": ("cond_stage_model", "tokenizer", "patcher"),
    "VAE": ("first_stage_model", "encode", "decode"),
    "CLIP_VISION": ("model", "patcher", "image_size"),
    "ATTENTION": ("recorder", "while_sampling"),
}
"""What values are known by: those of other packs may stand in for ComfyUI's and for ours."""
SOURCES = {
    "PROMPTS": "Context Prompts",
    "REGULARIZER": "CoRe, MLM or Nearest Word Regularizer",
    "CONCEPT": "Train Concept or Load Concept",
    "CONTEXTUALIZER": "Load Contextualizer",
    "TUNING_ENCODER": "Load Tuning Encoder",
    "ATTENTION": "Record Attention or Attend Image",
    "MODEL": "a node that loads a model",
    "CLIP": "Load CLIP, or a checkpoint that has one",
    "VAE": "Load VAE, or a checkpoint that has one",
    "CLIP_VISION": "Load CLIP Vision",
    "IMAGE": "a node that gives pictures",
    "MASK": "a node that gives masks",
    "LATENT": "a node that gives latents",
}
"""Kinds of sockets, and what gives such values; every other kind is typed into the node."""


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node class itself, whose `execute` asks `check_inputs` first. A node that takes lists gets its pictures as
    one list and everything else as ever."""
    if not hasattr(node, "unchecked"):
        node.unchecked = node.__dict__["execute"].__func__
        node.execute = classmethod(_asking_first(node.unchecked))
        if node.define_schema().is_input_list:
            for name in ("validate_inputs", "fingerprint_inputs"):
                if name in vars(node):
                    setattr(node, name, classmethod(_of_single(vars(node)[name].__func__)))
    return node


def _asking_first(execute: Callable[..., Any]) -> Callable[..., Any]:
    names = list(inspect.signature(execute).parameters)[1:]

    @functools.wraps(execute)
    def asked(cls: Any, *placed: Any, **named: Any) -> Any:
        given = {**dict(zip(names, placed, strict=False)), **named}
        try:
            schema = cls.define_schema()
            values = gathered(schema, given) if schema.is_input_list else given
            values = check_inputs(schema, values)
            return execute(cls, **values)
        except ValueError as error:
            if len(str(error)) >= MOST:
                error.args = (shortened(str(error)),)
            raise

    return asked


def _of_single(asks: Callable[..., Any]) -> Callable[..., Any]:
    """ComfyUI hands lists to these as well, where a node takes lists."""

    @functools.wraps(asks)
    def of_single(cls: Any, **given: Any) -> Any:
        # What comes along a link is not known yet: ComfyUI hands over (None,).
        single = {
            name: value[0] if isinstance(value, list | tuple) and value else value for name, value in given.items()
        }
        return asks(cls, **single)

    of_single.__signature__ = inspect.signature(asks)  # by which ComfyUI knows what to hand over
    return of_single


def check_inputs(schema: io.Schema, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node's inputs, those that were left open without an entry.

    Raises ValueError that names the input and its value where it is none that the node can take, and names both where
    two of them belong to different models.
    """
    values: dict[str, Any] = {}
    for one in schema.inputs:
        value = given.get(one.id)
        if value is None and one.optional:
            continue
        values[one.id] = checked_value(one, value)
    by_kind = {kind: [values[one.id] for one in schema.inputs if one.io_type == kind and one.id in values] for kind in
               ("MODEL", "CLIP", "VAE", "CONCEPT")}  # fmt: skip
    if by_kind["MODEL"]:
        clip, vae = (next(iter(by_kind[kind]), None) for kind in ("CLIP", "VAE"))
        fitting.require_fit(by_kind["MODEL"][0], clip, vae, by_kind["CONCEPT"])
    for clip in by_kind["CLIP"]:
        said, running = fitting.warn_never_loaded(clip), PromptServer.instance.last_node_id
        if said and running:
            PromptServer.instance.send_progress_text(said, running)
    return values


def checked_value(one: Any, value: Any) -> Any:
    """`value` as the input `one` takes it. Raises ValueError that names both."""
    if value is None:
        if one.io_type not in SOURCES:
            raise ValueError(f"{one.id} is empty; give it a value")
        raise ValueError(
            f"{one.id} is empty: what is connected to it has no {one.io_type}; connect {SOURCES[one.io_type]}"
        )
    check = CHECKS.get(one.io_type)
    return value if check is None else check(one, value)


def _number(one: Any, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{one.id} is {quoted(value)} and no number; give it a number")
    require_finite(**{one.id: value})
    if one.io_type == "INT" and value != int(value):
        raise ValueError(f"{one.id} is {value} and no whole number; give it a whole one")
    low, high = one.min, one.max
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"{one.id} is {value}, outside of {low} .. {high}; give it a value within")
    step = one.step if one.io_type == "INT" else None
    if step is not None and value % step:
        below = int(value // step * step)
        raise ValueError(f"{one.id} is {value} and no multiple of {step}; give it {below} or {below + step}")
    return int(value) if one.io_type == "INT" else float(value)


def _text(one: Any, value: Any) -> str | list[str]:
    if one.id in TEXTS and isinstance(value, list):
        return [_text(one, text) for text in value]
    if one.id == "class_word":
        return checked_phrase(value, one.id) if not isinstance(value, str) or value.strip() else ""
    long = getattr(one, "multiline", None) or getattr(one, "force_input", None)
    return checked_text(value, one.id, *([LONGEST_TEXT] if long else []))


def _choice(one: Any, value: Any) -> Any:
    if one.id not in FILE_INPUTS and value not in one.options:
        raise ValueError(f"{one.id} is {quoted(value)}; choose one of {listed(map(str, one.options))}")
    return value


def _pictures(one: Any, value: Any) -> Any:
    """Of grey pictures all three colours are the same."""
    if isinstance(value, list):
        return [_pictures(one, picture) for picture in value]
    _tensor(one, value)
    if value.ndim != 4 or value.shape[-1] not in (1, 3, 4) or 0 in value.shape:
        raise ValueError(
            f"{one.id} has the shape {tuple(value.shape)}; pictures are (number, height, width, 1, 3 or 4 channels)"
        )
    return value.expand(*value.shape[:-1], 3) if value.shape[-1] == 1 else value


def _masks(one: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_masks(one, mask) for mask in value]
    _tensor(one, value)
    if value.ndim not in (2, 3) or 0 in value.shape:
        raise ValueError(f"{one.id} has the shape {tuple(value.shape)}; masks are (number, height, width)")
    return value


def _tensor(one: Any, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise _no_such(one, value)
    if not value.dtype.is_floating_point:
        raise ValueError(f"{one.id} holds {value.dtype}; pictures and masks hold floats from 0 to 1")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{one.id} holds numbers that are not finite, which no picture shows: look at the node that they come from"
        )


def _latent(one: Any, value: Any) -> Any:
    if not isinstance(value, Mapping) or not isinstance(value.get("samples"), torch.Tensor):
        raise _no_such(one, value)
    return value


def _known(one: Any, value: Any) -> Any:
    if not all(hasattr(value, name) for name in MEMBERS[one.io_type]):
        raise _no_such(one, value)
    if one.io_type == "VAE" and value.first_stage_model is None:
        raise ValueError(f"{one.id} has no weights: its file holds none of a VAE; connect {SOURCES['VAE']}")
    return value


def _no_such(one: Any, value: Any) -> ValueError:
    what = quoted(value) if isinstance(value, str | int | float | list | dict) else f"a {type(value).__name__}"
    return ValueError(f"{one.id} is {what} and no {one.io_type}; connect {SOURCES[one.io_type]}")


CHECKS: dict[str, Callable[[Any, Any], Any]] = {
    "INT": _number,
    "FLOAT": _number,
    "STRING": _text,
    "COMBO": _choice,
    "IMAGE": _pictures,
    "MASK": _masks,
    "LATENT": _latent,
    **dict.fromkeys(MEMBERS, _known),
}
