"""Looking on at the cross-attention of a MODEL while any sampler runs it. The computation stays ComfyUI's own.

What is put into `transformer_options` lives for one UNet pass: a patch before and one after each cross-attention say
which layer is running, and in between the attention back end's own call, or another node's replacement of the layer, is
watched on its way through. Nothing is set on the model's modules, so an error leaves nothing behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context

from ...core.inspection.attention.recorder import AttentionRecorder, Rows
from ...core.models.attention import split_heads
from ...core.models.protocol import AttentionObserver
from .attention import BlockKey, CrossAttentionLayer, cross_attention_layers, diffusers_names

KEY = "contextual_inversion_attention"
CHUNK_LENGTH = 77
"""Tokens of CLIP; the context of a longer prompt is that of several chunks."""
CONDITIONAL = 0
"""ComfyUI's mark of the conditional part in `cond_or_uncond`."""


def recording(
    model: Any, recorder: AttentionRecorder, progress: Callable[[Mapping[str, Any]], float] | None = None
) -> Any:
    """A clone of `model` whose every sampling is recorded anew; it samples the same pictures, bit for bit.

    `progress` tells from a pass's `transformer_options` how far the sampling is, 0 to 1; by default its sigma tells. A
    caller with a `progress` of its own also finishes the recording, which then spans any number of samplings.

    Raises ValueError where the model is no UNet with cross-attention.
    """
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"{type(model.model).__name__} is not a Stable Diffusion UNet and has no cross-attention to record; "
            "SD 1.x, SD 2.x and SDXL are supported"
        )
    layers = cross_attention_layers(unet, diffusers_names(model.model.model_config.unet_config))
    names = [layer.name for layer in layers]

    def sampling(executor: Any, *arguments: Any, **keywords: Any) -> Any:
        recorder.begin(names)
        try:
            result = executor(*arguments, **keywords)
        except BaseException:
            recorder.forget()
            raise
        context = get_executing_context()
        recorder.finish(digest(result), context and context.prompt_id)
        return result

    def one_pass(
        executor: Any, x: torch.Tensor, timesteps: Any = None, context: Any = None, y: Any = None, control: Any = None,
        transformer_options: Mapping[str, Any] | None = None, **keywords: Any
    ) -> Any:  # fmt: skip
        options = dict(transformer_options or {})
        # Without a sampler's sigmas this is no sampling: a training on the same model, for instance.
        rows = conditional_rows(options, x.shape[0]) if progress or "sample_sigmas" in options else {}
        if progress:
            # Several samplings, each of which gives its conditionings new ids.
            rows = dict(enumerate(rows.values()))
        if rows:
            size = (int(x.shape[-2]), int(x.shape[-1]))
            periods = {name: period_of(context, slices) for name, slices in rows.items()}
            watch = recorder.watch((progress or sampling_progress)(options), rows, size, periods)
            options = observing(options, layers, watch)
        return executor(x, timesteps, context, y, control, options, **keywords)

    clone = model.clone()
    if progress is None:
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampling)
    else:
        recorder.begin(names)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, one_pass)
    return clone


def digest(tensor: torch.Tensor) -> str:
    """What tells the values of one tensor from those of another."""
    content = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.blake2b(content.tobytes() + repr(tuple(tensor.shape)).encode(), digest_size=16).hexdigest()


def conditional_rows(options: Mapping[str, Any], batch: int) -> Rows:
    """The rows of each conditioning that ComfyUI marks as conditional, by its id, in the order in which they were
    combined. A batch holds equal chunks."""
    marks = options.get("cond_or_uncond") or [CONDITIONAL]
    names = options.get("uuids") or list(range(len(marks)))
    chunk = batch // len(marks)
    rows: dict[Any, list[slice]] = {}
    # ComfyUI batches from the last conditioning to the first.
    for index, (mark, name) in reversed(list(enumerate(zip(marks, names, strict=True)))):
        if mark == CONDITIONAL:
            rows.setdefault(name, []).append(slice(index * chunk, (index + 1) * chunk))
    return rows


def period_of(context: torch.Tensor, rows: Sequence[slice]) -> int:
    """After how many tokens the context (B, L, D) of some rows repeats itself at the earliest; L where it does not.

    ComfyUI repeats the shorter of two contexts, up to four times, to run them in one batch.
    """
    length = context.shape[1]
    for copies in (4, 3, 2):
        tokens = length // copies
        # Of one chunk nothing is repeated, and nobody has to wait for the device.
        whole = length % copies == 0 and tokens >= CHUNK_LENGTH
        if whole and all(torch.equal(context[part, tokens:], context[part, :-tokens]) for part in rows):
            return tokens
    return length


def sampling_progress(options: Mapping[str, Any]) -> float:
    """How far a sampling is, from the pass's sigma and the sampler's own sigmas: 0 at its first step, below 1 at its
    last. Samplers that look between two steps are between them."""
    sigmas, sigma = options["sample_sigmas"], options["sigmas"].flatten()[0]
    # A sampler may come to a sigma through its logarithm and miss it by a rounding.
    passed = int((sigma.to(sigmas) <= sigmas[:-1] * (1 + 1e-4)).sum())
    return max(0, passed - 1) / max(1, len(sigmas) - 1)


@dataclass
class _Open:
    """The cross-attention that is running, or none."""

    layer: int | None = None
    tokens: int = 0
    size: tuple[int, int] | None = None


def observing(
    options: Mapping[str, Any], layers: Sequence[CrossAttentionLayer], observer: AttentionObserver
) -> dict[str, Any]:
    """`transformer_options` for one pass with every cross-attention watched; what came in is not changed."""
    numbers: dict[BlockKey, int] = {layer.key: index for index, layer in enumerate(layers)}
    now = _Open()

    def before(query: Any, context: Any, value: Any, extra: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        now.layer, now.size, now.tokens = numbers.get(_key(extra)), _size(extra), int(context.shape[1])
        return query, context, value

    def after(out: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        now.layer = None
        return out

    def look(query: torch.Tensor, key: torch.Tensor) -> None:
        # Keys of another number are not those of the prompt, but of somebody's image tokens.
        if now.layer is None or key.shape[2] != now.tokens:
            return
        observer.observe(now.layer, query, key, None, now.size)

    patches = dict(options.get("patches", {}))
    patches["attn2_patch"] = [*patches.get("attn2_patch", []), before]
    patches["attn2_output_patch"] = [after, *patches.get("attn2_output_patch", [])]
    replace = dict(options.get("patches_replace", {}))
    replace["attn2"] = {key: _seen(theirs, now, look) for key, theirs in replace.get("attn2", {}).items()}
    override = _override(options.get("optimized_attention_override"), now, look)
    return {**options, "patches": patches, "patches_replace": replace, "optimized_attention_override": override}


Look = Callable[[torch.Tensor, torch.Tensor], None]


def _override(previous: Any, now: _Open, look: Look) -> Callable[..., Any]:
    """Passes every attention on, to the override that was there or to the back end; those of an open layer are seen."""

    def attention(function: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
        if now.layer is not None:
            heads = rest[1] if len(rest) > 1 else keywords["heads"]
            split = not keywords.get("skip_reshape", False)
            look(*(split_heads(x, heads) if split else x for x in (query, key)))
        if previous is not None:
            return previous(function, query, key, *rest, **keywords)
        return function(query, key, *rest, **keywords)

    if hasattr(previous, "container_function"):
        attention.container_function = previous.container_function  # type: ignore[attr-defined]
    return attention


def _seen(theirs: Any, now: _Open, look: Look) -> Callable[..., Any]:
    """Another node's replacement of a cross-attention, called as it was, after its queries and keys have been seen."""

    def replacement(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extra: Mapping[str, Any]) -> Any:
        heads = extra["n_heads"]
        look(split_heads(query, heads), split_heads(key, heads))
        now.layer = None  # what it calls inside would be seen a second time
        return theirs(query, key, value, extra)

    return replacement


def _key(extra: Mapping[str, Any]) -> BlockKey | None:
    block = extra.get("block")
    return None if block is None else (block[0], block[1], extra.get("block_index", 0))


def _size(extra: Mapping[str, Any]) -> tuple[int, int] | None:
    shape = extra.get("activations_shape")
    return None if shape is None else (int(shape[2]), int(shape[3]))
