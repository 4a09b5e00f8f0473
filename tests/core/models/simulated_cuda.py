"""A CUDA device that is not there: tensors that say they are on it and compute on the CPU, under CUDA's own rules.

    with simulated_cuda() as waits:
        torch.ones(3, device="cuda:0") + torch.ones(3)   # RuntimeError: tensors on cuda:0 and cpu

What would fail on a GPU for lying on the wrong device fails here, numbers stay those of the CPU, and `waits` names
every call that made the host wait for the device.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._pytree import tree_flatten, tree_map_only

from contextual_inversion.core.models.gated import _Gated

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ANSWERS = {
    *("item", "tolist", "nonzero", "masked_select", "equal", "unique", "allclose", "is_nonzero", "argwhere"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
}
"""Calls whose answer, or its shape, the host has to know."""
NO_SCALARS = {"cat", "stack", "index_copy", "index_copy_", "index_select", "take_along_dim", "gather", "embedding"}
"""Calls that take no single number from the CPU among tensors of a GPU."""
MOVES = {"to", "cuda", "cpu", "copy_", "type_as"}


class OnCuda(torch.Tensor):
    """A CPU tensor that passes for one on the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return called(function, arguments, keywords or {}, [])


class Simulation(TorchFunctionMode):
    """Sees every call of PyTorch, and so tensors that are made on the device or moved to it too."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return called(function, arguments, keywords or {}, self.waits)


def called(function: Any, arguments: Any, keywords: dict[str, Any], waits: list[str]) -> Any:
    """One call on the CPU's numbers, after what CUDA would have refused."""
    name = getattr(function, "__name__", str(function))
    tensors = [one for one in tree_flatten((arguments, keywords))[0] if isinstance(one, torch.Tensor)]
    if name == "__get__":  # an attribute
        with torch._C.DisableTorchFunctionSubclass():
            return placed(function(*arguments), tensors[0].device)
    if name == "pin_memory":
        return arguments[0]
    if name == "_has_compatible_shallow_copy_type":
        return type(arguments[0]) is type(arguments[1])
    if name in MOVES:
        return moved(function, name, arguments, keywords, waits)
    if name in ("numpy", "__array__") and type(arguments[0]) is OnCuda:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    made = keywords.get("device")
    if made is not None:
        made = torch.device(made)
        keywords = {**keywords, "device": CPU if made.type == "cuda" else made}
        if name in ("tensor", "as_tensor"):
            tensors = []
    check(name, arguments, tensors, made, keywords.get("generator"))
    ours = [one for one in tensors if type(one) is OnCuda]
    if ours and name in ANSWERS:
        waits.append(f"{name} {where()}")
    if name == "__getitem__" and type(arguments[0]) is OnCuda:
        indices = [one for one in tree_flatten(arguments[1])[0] if isinstance(one, torch.Tensor | list)]
        if any(isinstance(one, list) or one.dtype == torch.bool or type(one) is not OnCuda for one in indices):
            waits.append(f"index {where()}")
    with torch._C.DisableTorchFunctionSubclass():
        result = function(*arguments, **keywords)
    return placed(result, made if made is not None else CUDA if ours else CPU)


def moved(function: Any, name: str, arguments: Any, keywords: dict[str, Any], waits: list[str]) -> Any:
    """`to`, `cpu`, `cuda` and `copy_`, which may cross from one device to the other."""
    source, *rest = arguments
    if name == "copy_":
        here, there = source.device, rest[0].device
        if here == CPU and there == CUDA:
            waits.append(f"copy_ {where()}")
        with torch._C.DisableTorchFunctionSubclass():
            function(*arguments, **keywords)
        return source
    asked = {"cpu": CPU, "cuda": CUDA}.get(name)
    dtype = keywords.get("dtype")
    for value in (*rest, keywords.get("device")):
        if isinstance(value, torch.Tensor):
            asked, dtype = value.device, value.dtype
        elif isinstance(value, str | torch.device):
            asked = torch.device(value)
        elif isinstance(value, torch.dtype):
            dtype = value
    asked = source.device if asked is None else asked
    changes = asked.type != source.device.type
    if changes and asked.type == "cpu":
        waits.append(f"{name} {where()}")
    with torch._C.DisableTorchFunctionSubclass():
        result = source.to(source.dtype if dtype is None else dtype, copy=changes or keywords.get("copy", False))
        if result is not source and type(result) is OnCuda and asked.type != "cuda":
            result = result.as_subclass(torch.Tensor)
    return result if result is source else placed(result, asked)


def placed(result: Any, device: torch.device) -> Any:
    """What came of a call, on the device."""
    if device.type != "cuda" or isinstance(result, torch.Size):
        return result
    with torch._C.DisableTorchFunctionSubclass():
        return tree_map_only(torch.Tensor, _on_cuda, result)


def _on_cuda(tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) is OnCuda:
        return tensor
    leaf = tensor.requires_grad and tensor.is_leaf
    return (tensor.detach() if leaf else tensor).as_subclass(OnCuda).requires_grad_(tensor.requires_grad)


def check(name: str, arguments: Any, tensors: list[torch.Tensor], made: Any, generator: Any) -> None:
    """Raises RuntimeError where CUDA would: tensors on both devices, or a generator of the wrong one."""
    if generator is not None:
        place = made.type if made is not None else tensors[0].device.type if tensors else "cpu"
        if generator.device.type != place:
            raise RuntimeError(f"{name}: expected a {place} generator, found one on {generator.device}")
    if name in ("view_as", "expand_as", "reshape_as"):
        return  # of the other one they look at its shape alone
    if name in ("__getitem__", "__setitem__", "index_put_") and tensors and tensors[0].device == CUDA:
        return  # CUDA takes indices and values from the CPU
    devices = {one.device for one in tensors if one.ndim > 0 or one.device == CUDA or name in NO_SCALARS}
    if len(devices) > 1:
        shapes = ", ".join(f"{tuple(one.shape)} on {one.device}" for one in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {shapes}")


def where() -> str:
    """The innermost lines of this repository that are running."""
    frames = [frame for frame in traceback.extract_stack() if "simulated_cuda" not in frame.filename]
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    return " < ".join(line.split("/")[-2] + "/" + line.split("/")[-1] for line in reversed(lines[-4:]))


def backward(loss: torch.Tensor, *arguments: Any, **keywords: Any) -> None:
    torch.autograd.backward(loss, *arguments, **keywords)


def gradients(grad: Any) -> Any:
    def placed_gradients(outputs: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        return placed(grad(outputs, *arguments, **keywords), outputs.device)

    return placed_gradients


def as_kernel(backward: Any) -> Any:
    """A backward pass of our own as one call: autograd hands it plain tensors beside those of the device."""

    def whole(*arguments: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return backward(*arguments)

    return staticmethod(whole)


@contextmanager
def simulated_cuda() -> Iterator[list[str]]:
    """Inside, "cuda:0" is a device. Yields what made the host wait for it, as it happens."""
    simulation = Simulation()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name in ("_lazy_init", "set_device", "reset_peak_memory_stats", "synchronize", "empty_cache"):
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=None))
        for name in ("current_device", "max_memory_allocated"):
            stack.enter_context(mock.patch.object(torch.cuda, name, return_value=0))
        # A backward pass is no call of its own: what runs in it, such as a checkpointed block, is to be seen.
        stack.enter_context(mock.patch.object(torch.autograd, "has_torch_function", return_value=False))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", gradients(torch.autograd.grad)))
        stack.enter_context(mock.patch.object(torch.Tensor, "backward", backward))
        stack.enter_context(mock.patch.object(_Gated, "backward", as_kernel(_Gated.backward)))
        # A checkpoint compares what it saves; autograd saves the plain CPU tensors of some.
        checks = checkpoint._allowed_determinism_checks_to_fns
        stack.enter_context(mock.patch.dict(checks, {"default": lambda saved: saved.shape}))
        # A module's parameters are replaced when it moves: one cannot become another kind of tensor in place.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        stack.enter_context(simulation)
        yield simulation.waits
