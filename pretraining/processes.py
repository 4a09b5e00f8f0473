"""One process or several: the same training loop alone, under torchrun and under `accelerate launch`."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


class Processes:
    """Rank, world size and device of this process. Several processes average their gradients; rank 0 writes files."""

    def __init__(self, device: str | None = None) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device(device or (f"cuda:{local}" if cuda else "cpu"))
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one flat exchange."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (n, ...) of every process, joined along the first axis (size * n, ...); constants for autograd."""
        if self.size == 1:
            return x.detach()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.detach().contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()
