"""Blocks of a denoiser or a text encoder, numbered and checkpointed in place for the length of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch

from ....core.models.checkpointing import checkpoint
from ....core.models.replacing import instead
from ....core.models.replay import Replay
from .gradients import differentiable
from .streaming import borrowed

BLOCK = "contextual_inversion_block"
"""In a block's `transformer_options`: the `Run` of it that is going on."""
ATTENTION = "optimized_attention"
"""What ComfyUI's modules call the function that attends."""


@dataclass
class Run:
    """One run of the block of this `number`: whether it is its second in a backward pass (`again`), and how often it
    has attended so far (`calls`)."""

    number: int
    again: bool
    calls: int = 0


@dataclass(frozen=True)
class Lent:
    """`transformer_options` for the attention of a family whose blocks get none: its `module` calls it without them."""

    module: Any
    options: Mapping[str, Any]

    def to(self, run: Run) -> AbstractContextManager[None]:
        """Inside, the module's attention is called with the options, and with the run of the block that calls it."""
        options = {**self.options, BLOCK: run}
        return instead(self.module, ATTENTION, partial(getattr(self.module, ATTENTION), transformer_options=options))


def lent(module: str, options: Mapping[str, Any]) -> Lent | None:
    """The options for the attention that the module of this name calls; None for "", where blocks hand them on."""
    return Lent(import_module(module), options) if module else None


@contextmanager
def numbered(
    blocks: Sequence[torch.nn.Module],
    *,
    checkpointing: bool,
    given: Lent | None = None,
    device: torch.device | None = None,
) -> Iterator[None]:
    """Inside, each block is told its number, and keeps only what goes into it where it is checkpointed; `given` are the
    options of blocks that have none, and `device` is where the weights of blocks come while they run."""
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            ours = _Block(number, block, checkpointing, given, device)
            stack.enter_context(instead(block, "forward", ours))
        yield


class _Block:
    """In the place of one block's `forward`."""

    def __init__(
        self,
        number: int,
        block: torch.nn.Module,
        checkpointing: bool,
        given: Lent | None,
        device: torch.device | None,
    ) -> None:
        self.number, self.block, self.checkpointing = number, block, checkpointing
        self.forward, self.given, self.device = block.forward, given, device

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self._run(arguments, keywords, False)
        tensors, arranged = _flattened((arguments, keywords))
        replay, again = Replay(self.block), False

        def run(*values: torch.Tensor) -> Any:
            nonlocal again
            recomputing, again = again, True
            # Blocks write into what they are given; what goes in here has to be the same when it runs again.
            ours = [value.clone() if value.is_floating_point() else value for value in values]
            given, named = arranged(ours)
            if not recomputing:
                return self._run(given, named, False)
            with replay.again(), differentiable():
                return self._run(given, named, True)

        return checkpoint(run, *tensors)

    def _run(self, arguments: Sequence[Any], keywords: Mapping[str, Any], recomputing: bool) -> Any:
        run, options = Run(self.number, recomputing), keywords.get("transformer_options")
        told = {} if options is None else {"transformer_options": {**options, BLOCK: run}}
        with nullcontext() if self.given is None else self.given.to(run), self._at_hand():
            return self.forward(*arguments, **{**keywords, **told})

    def _at_hand(self) -> AbstractContextManager[None]:
        return nullcontext() if self.device is None else borrowed(list(self.block.modules()), self.device)


def _flattened(value: Any) -> tuple[list[torch.Tensor], Callable[[Sequence[torch.Tensor]], Any]]:
    """The tensors in nested lists, tuples and dictionaries, and what puts others in their places. Dictionaries are
    copied now: ComfyUI goes on writing into its options."""
    found: list[torch.Tensor] = []

    def kept(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            found.append(part)
            return _Slot(len(found) - 1)
        if isinstance(part, dict):
            return {key: kept(one) for key, one in part.items()}
        if isinstance(part, list | tuple) and type(part) in (list, tuple):
            return type(part)(kept(one) for one in part)
        return part

    shape = kept(value)
    return found, lambda tensors: _filled(shape, tensors)


class _Slot(int):
    """Where a tensor goes."""


def _filled(part: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(part, _Slot):
        return tensors[part]
    if isinstance(part, dict):
        return {key: _filled(one, tensors) for key, one in part.items()}
    if isinstance(part, list | tuple) and type(part) in (list, tuple):
        return type(part)(_filled(one, tensors) for one in part)
    return part


def lists_of_blocks(module: torch.nn.Module, names: Sequence[str]) -> list[torch.nn.Module]:
    """All blocks in the lists of these names, in order; those that are not there have none."""
    return [block for name in names for block in getattr(module, name, ())]


def joint_blocks(module: torch.nn.Module, names: Sequence[str], apart: Sequence[str]) -> frozenset[int]:
    """The numbers of the blocks, of all in the lists of these names, that are in none of those set `apart`."""
    kept = {id(block) for block in lists_of_blocks(module, [name for name in names if name not in apart])}
    return frozenset(at for at, block in enumerate(lists_of_blocks(module, names)) if id(block) in kept)


def text_blocks(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a text encoder: the longest list of modules in it."""
    lists = [part for part in transformer.modules() if isinstance(part, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=()))
