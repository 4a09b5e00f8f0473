"""Recording the cross-attention of a MODEL while any sampler runs it. The computation stays ComfyUI's own.

Hooks are on the model's projections for the length of one UNet pass; no attention back end, override or replacement is
put in the place of another, so that whichever computes goes on computing.
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
from .attention import cross_attention_layers, diffusers_names, observed_layers
from .families.facts import family_of
from .family_recording import FamilyPasses, block_names, require_seen

KEY = "contextual_inversion_attention"
CHUNK_LENGTH = 77
"""Tokens of CLIP; the context of a longer prompt is that of several chunks."""
CONDITIONAL = 0
"""ComfyUI's mark of the conditional part in `cond_or_uncond`."""


def recording(model: Any, recorder: AttentionRecorder) -> Any:
    """A clone of `model` whose every sampling is recorded anew; it samples the same pictures, bit for bit.

    Raises ValueError where the model is no UNet with cross-attention.
    """
    sampling, passes = _Sampling(recorder, layer_names(model)), _passes(model, recorder, of_a_sampler)
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampling)
    clone.add_wrapper_with_key(_around(model), KEY, passes)
    return clone


def recording_at(model: Any, recorder: AttentionRecorder, progress: float) -> Any:
    """A clone of `model` whose passes are added to a recording that the caller begins and finishes: all of them as of
    `progress`, in [0, 1), however many samplings they belong to."""

    def now(options: Mapping[str, Any], batch: int) -> tuple[float, Rows]:
        # Every sampling gives its conditionings new ids; their places stay.
        return progress, dict(enumerate(conditional_rows(options, batch).values()))

    clone = model.clone()
    clone.add_wrapper_with_key(_around(model), KEY, _passes(model, recorder, now))
    return clone


def _around(model: Any) -> str:
    """Where `_passes` goes."""
    return WrappersMP.DIFFUSION_MODEL if family_of(model) is None else WrappersMP.APPLY_MODEL


def _passes(
    model: Any, recorder: AttentionRecorder, when: Callable[[Mapping[str, Any], int], tuple[float, Rows]]
) -> Any:
    """What goes around each pass of a model's denoiser."""
    if family_of(model) is not None:
        return FamilyPasses(recorder, require_seen(model), when)
    return _Passes(recorder, unet_names(model), when)


def layer_names(model: Any) -> list[str]:
    """What a recording of `model` begins with. Raises ValueError where its attention cannot be seen."""
    if family_of(model) is not None:
        return block_names(model)
    return [layer.name for layer in cross_attention_layers(model.model.diffusion_model, unet_names(model))]


def unet_names(model: Any) -> dict[str, str]:
    """`diffusers_names` of a MODEL. Raises ValueError where it is no UNet with cross-attention."""
    if not isinstance(model.model.diffusion_model, UNetModel):
        raise ValueError(
            f"{type(model.model).__name__} is not a Stable Diffusion UNet and has no cross-attention to record; "
            "SD 1.x, SD 2.x and SDXL are supported"
        )
    return diffusers_names(model.model.model_config.unet_config)


@dataclass(frozen=True)
class _Sampling:
    """Around one sampling: a recording of its own, or none at all where it fails."""

    recorder: AttentionRecorder
    layers: Sequence[str]

    def __call__(self, run: Any, *arguments: Any, **keywords: Any) -> Any:
        self.recorder.begin(self.layers)
        try:
            result = run(*arguments, **keywords)
        except BaseException:
            self.recorder.forget()
            raise
        context = get_executing_context()
        self.recorder.finish(digest(result), context and context.prompt_id)
        return result


@dataclass(frozen=True)
class _Passes:
    """Around one pass of the UNet, whose layers have diffusers' `names` by ComfyUI's. `when` says how far the sampling
    is and which rows of the batch are looked at."""

    recorder: AttentionRecorder
    names: Mapping[str, str]
    when: Callable[[Mapping[str, Any], int], tuple[float, Rows]]

    def __call__(
        self,
        run: Any,
        x: torch.Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Any:
        options = transformer_options or {}
        progress, rows = self.when(options, x.shape[0])
        if not rows:
            return run(x, timesteps, context, y, control, options, **conditions)
        periods = {name: period_of(context, slices) for name, slices in rows.items()}
        watch = self.recorder.watch(progress, rows, (int(x.shape[-2]), int(x.shape[-1])), periods)
        # Copies of a model have modules of their own.
        with observed_layers(cross_attention_layers(run.class_obj, self.names), watch):
            return run(x, timesteps, context, y, control, options, **conditions)


def of_a_sampler(options: Mapping[str, Any], batch: int) -> tuple[float, Rows]:
    """How far the sampling of this pass is, and the rows of its conditionals. None are in a pass without a sampler's
    sigmas: it is of a training on the same model, for instance."""
    if "sample_sigmas" not in options:
        return 0.0, {}
    return sampling_progress(options), conditional_rows(options, batch)


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
