"""The array libraries that every equation runs on, behind one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

jax.config.update("jax_enable_x64", True)  # NumPy float64 is the reference, so JAX has to have it too


@dataclass(frozen=True)
class Backend:
    """One array library: to it, from it, and the gradient of a scalar function of arrays where it has one."""

    name: str
    array: Callable[..., Any]
    gradient: Callable[..., list[np.ndarray]] | None = None

    def numpy(self, x: Any) -> np.ndarray:
        if self.name == "torch":
            return x.detach().to(torch.float64).numpy() if x.is_floating_point() else x.detach().numpy()
        return np.asarray(x, dtype=np.float64) if self.name == "jax" and x.dtype == jnp.bfloat16 else np.asarray(x)

    def call(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """`function` of arrays of this library; JAX compiles it as a whole, since one operation at a time is slow."""
        return (jax.jit(function) if self.name == "jax" else function)(*arrays)

    def tree(self, value: Any, dtype: str | None = None) -> Any:
        """`value` with every NumPy array in it (lists are walked) made an array of this library; floating ones in
        `dtype` where it is given."""
        if isinstance(value, list):
            return [self.tree(v, dtype) for v in value]
        if not isinstance(value, np.ndarray):
            return value
        return self.array(value, dtype if value.dtype.kind == "f" else None)


def _numpy_array(x: np.ndarray, dtype: str | None = None) -> np.ndarray:
    return x if dtype is None else x.astype(dtype)


def _strict_array(x: np.ndarray, dtype: str | None = None) -> Any:
    return array_api_strict.asarray(x if dtype is None else x.astype(dtype))


def _torch_array(x: np.ndarray, dtype: str | None = None) -> torch.Tensor:
    return torch.asarray(x.copy(), dtype=None if dtype is None else getattr(torch, dtype))


def _jax_array(x: np.ndarray, dtype: str | None = None) -> jax.Array:
    return jnp.asarray(x, dtype=None if dtype is None else getattr(jnp, dtype))


def _torch_gradient(function: Callable[..., torch.Tensor], *arrays: np.ndarray) -> list[np.ndarray]:
    leaves = [_torch_array(a).requires_grad_() for a in arrays]
    return [g.numpy() for g in torch.autograd.grad(function(*leaves), leaves, materialize_grads=True)]


def _jax_gradient(function: Callable[..., jax.Array], *arrays: np.ndarray) -> list[np.ndarray]:
    gradient = jax.jit(jax.grad(function, argnums=tuple(range(len(arrays)))))
    return [np.asarray(g) for g in gradient(*(_jax_array(a) for a in arrays))]


BACKENDS = {
    "numpy": Backend("numpy", _numpy_array),
    "strict": Backend("strict", _strict_array),
    "torch": Backend("torch", _torch_array, _torch_gradient),
    "jax": Backend("jax", _jax_array, _jax_gradient),
}


# Session scope, so that hypothesis may run many examples on one backend.
@pytest.fixture(scope="session", params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture(scope="session", params=["torch", "jax"])
def autograd(request: pytest.FixtureRequest) -> Backend:
    """A backend that has gradients."""
    return BACKENDS[request.param]


@pytest.fixture(scope="session")
def backends() -> dict[str, Backend]:
    return BACKENDS
