"""How much memory and time something took."""

from __future__ import annotations

import time

import torch


class Footprint:
    """Seconds and peak memory between its making and `stop`.

    On CUDA the peak is the allocator's, exact, with the weights that were there before. Elsewhere it is the whole
    process's resident memory, looked at whenever `look` is called.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.peak_bytes = 0
        self._started = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.look()

    def look(self) -> None:
        """Take note of what is in use now, where nobody else does."""
        if self.device.type != "cuda":
            import psutil

            self.peak_bytes = max(self.peak_bytes, int(psutil.Process().memory_info().rss))

    def stop(self) -> dict[str, object]:
        """As plain data for provenance; waits for the device."""
        self.look()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_bytes = int(torch.cuda.max_memory_allocated(self.device))
        self.seconds = time.perf_counter() - self._started
        memory = "device" if self.device.type == "cuda" else "process"
        return {"seconds": round(self.seconds, 3), "peak_bytes": self.peak_bytes, "memory": memory}
