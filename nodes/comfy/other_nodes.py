"""What other nodes have put on a MODEL, while we take gradients of it: exact, or refused with words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch.autograd.graph import saved_tensors_hooks

RAN = "contextual_inversion_ran"
BEFORE_OR_WITHOUT = "connect the model to the training before that node, and use the node for sampling alone"
IN_PLACE = "modified by an inplace operation"
"""How autograd says that it cannot give a gradient because a tensor it needs was written into."""


def with_exact_gradients(options: Mapping[str, Any]) -> dict[str, Any]:
    """`transformer_options` in which other nodes' patches write into copies alone; what came in is not changed.

    They are made for sampling, where it does not matter whether a tensor is changed or another one returned. Autograd
    refuses that (FreeU_V2), or inside of a checkpointed block may not even notice it.
    """
    patches = {
        kind: [_on_copies(patch) if callable(patch) else patch for patch in theirs]
        for kind, theirs in options.get("patches", {}).items()
    }
    return {**options, "patches": patches} if patches else dict(options)


def _on_copies(patch: Callable[..., Any]) -> Callable[..., Any]:
    def copying(*arguments: Any, **keywords: Any) -> Any:
        with saved_tensors_hooks(torch.Tensor.clone, lambda kept: kept):
            return patch(*(_copy(value) for value in arguments), **keywords)

    return copying


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict) and "h" in value:  # `middle_block_after_patch` takes its tensors in one
        return {key: _copy(part) if isinstance(part, torch.Tensor) else part for key, part in value.items()}
    return value


@contextmanager
def blamed(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """`transformer_options` for a pass of the UNet alone, outside of any sampling.

    Raises RuntimeError that names another node's wrapper where it failed, or kept the UNet from running: one that
    remembers earlier passes (EasyCache, TeaCache) has nothing to say to a training.
    """
    wrappers = options.get("wrappers", {})
    theirs = {key: found for key, found in wrappers.get(WrappersMP.DIFFUSION_MODEL, {}).items() if found}
    if not theirs:
        yield dict(options)
        return
    ran: list[bool] = []

    def innermost(run: Any, *arguments: Any, **keywords: Any) -> Any:
        ran.append(True)
        return run(*arguments, **keywords)

    ours = {**wrappers, WrappersMP.DIFFUSION_MODEL: {**theirs, RAN: [innermost]}}
    try:
        yield {**options, "wrappers": ours}
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        if ran:
            raise
        raise RuntimeError(
            f"what another node has put around the model ({', '.join(map(str, theirs))}) does not work outside of a "
            f"sampler: {type(error).__name__} {error}. So {BEFORE_OR_WITHOUT}"
        ) from error
    if not ran:
        raise RuntimeError(
            f"what another node has put around the model ({', '.join(map(str, theirs))}) kept it from running, with a "
            f"result of an earlier pass perhaps. So {BEFORE_OR_WITHOUT}"
        )


@contextmanager
def refused_in_words(patcher: Any) -> Iterator[None]:
    """Autograd's error over a tensor that was changed in place names no node; ours says where to look."""
    try:
        yield
    except RuntimeError as error:
        if IN_PLACE not in str(error):
            raise
        raise RuntimeError(
            f"a node before the training ({_patched(patcher)}) changes in place what the training needs for its "
            f"gradient. So {BEFORE_OR_WITHOUT}"
        ) from error


def _patched(patcher: Any) -> str:
    """What kinds of patches there are."""
    options = patcher.model_options["transformer_options"]
    kinds = [kind for part in ("patches", "patches_replace") for kind, found in options.get(part, {}).items() if found]
    kinds += [name for name in ("optimized_attention_override",) if name in options]
    return "patches: " + ", ".join(kinds) if kinds else "no patch of the attention or the blocks"
