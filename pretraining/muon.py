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
    """The nearest (semi-)orthogonal matrix to `g` (m, n), approximately: singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = g.bfloat16()
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(g.dtype)


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
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._matrix(p, group) if p.ndim >= 2 else self._vector(p, group)
                p.add_(update, alpha=-group["lr"])

    def _matrix(self, p: torch.nn.Parameter, group: dict) -> torch.Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].mul_(group["momentum"]).add_(p.grad)
        looked_ahead = (p.grad + group["momentum"] * state["momentum"]).flatten(1)
        scale = 0.2 * max(looked_ahead.shape) ** 0.5
        return scale * orthogonalise(looked_ahead).view_as(p)

    def _vector(self, p: torch.nn.Parameter, group: dict) -> torch.Tensor:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - beta1)
        state["square"].lerp_(p.grad.square(), 1 - beta2)
        mean = state["mean"] / (1 - beta1 ** state["step"])
        return mean / ((state["square"] / (1 - beta2 ** state["step"])).sqrt() + 1e-8)
