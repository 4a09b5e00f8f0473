"""Muon: momentum whose matrices are orthogonalised before they are applied, AdamW for everything else.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the update is scaled as in
"Muon is scalable for LLM training" (2025), so that AdamW's learning rates keep their meaning.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration; singular values end up near 1, not at it."""


def orthogonalise(g: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix to each of `g` (..., m, n), approximately: singular values 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x if x.shape[-2] <= x.shape[-1] else x.mT
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.shape[-2] <= x.shape[-1] else wide.mT).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more axes (convolutions as matrices (out, in * k * k)), AdamW for biases and norms."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if p.ndim >= 2:
                    alike.setdefault(tuple(p.shape), []).append(p)
                else:
                    p.add_(self._vector(p, group), alpha=-group["lr"])
            # Matrices of one shape go through the iteration together: many small products cost mostly their calls.
            for same in alike.values():
                for p, update in zip(same, self._matrices(same, group), strict=True):
                    p.add_(update.view_as(p), alpha=-group["lr"])

    def _matrices(self, same: list[torch.nn.Parameter], group: dict) -> torch.Tensor:
        """Updates (n, out, in * k * k) of parameters of one shape."""
        ahead = []
        for p in same:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].mul_(group["momentum"]).add_(p.grad)
            ahead.append((p.grad + group["momentum"] * state["momentum"]).flatten(1))
        looked_ahead = torch.stack(ahead)
        return 0.2 * max(looked_ahead.shape[1:]) ** 0.5 * orthogonalise(looked_ahead)

    def _vector(self, p: torch.nn.Parameter, group: dict) -> torch.Tensor:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - beta1)
        state["square"].lerp_(p.grad.square(), 1 - beta2)
        mean = state["mean"] / (1 - beta1 ** state["step"])
        return mean / ((state["square"] / (1 - beta2 ** state["step"])).sqrt() + 1e-8)
