"""What the page shows of a training while it runs and after: every loss, samples, how long it still takes.

The page gets the news as an event of ours and keeps the whole; a page that was reloaded asks for the whole
(`running.py`), and the last one stays in ComfyUI's history as the node's output.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from PIL import Image
from server import PromptServer

EVENT = "contextual_inversion.training"
OUTPUT = "contextual_inversion_training"
"""Key of the node's output in ComfyUI's history; js/extension.js reads it."""
PAUSE = 0.3
"""Seconds between two events, so that fast steps do not flood the page."""
POINTS = 600
"""Points of a curve in the whole: more than a node is wide."""


class LiveView:
    """The losses and samples of one node's training so far. `news` sends what is new to those who watch."""

    def __init__(self, node_id: str, total_steps: int) -> None:
        self.node_id, self.total_steps = node_id, total_steps
        self.workflow = running_workflow()
        self.first_step = self.step = 0
        self.losses: dict[str, list[float]] = {}
        self.samples: list[dict[str, Any]] = []
        self.text = ""
        self.ended = False
        self.watchers = watchers()
        self.watchers.add(PromptServer.instance.client_id)
        self.stoppable = False
        """Whether the page may stop it and keep what was learned."""
        self._began = time.perf_counter()
        self._sent_steps, self._sent_samples, self._sent_at = 0, 0, -math.inf

    def start(self, first_step: int) -> None:
        """Begin, or go on behind a number of steps that are not seen here."""
        self.first_step = self.step = first_step
        self._began = time.perf_counter()
        self._send({**self.whole(), "begins": True})

    def remember(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Append each loss's (k,) values of the latest steps. A loss that is new gets NaN for those before."""
        past = max((len(values) for values in self.losses.values()), default=0)
        for name, values in losses.items():
            self.losses.setdefault(name, [math.nan] * past).extend(values.tolist())

    def complete(self, losses: Mapping[str, torch.Tensor], step: int) -> None:
        """Take the whole (step,) history of every loss at the end, also what went before a continued training."""
        self._sent_steps += self.first_step
        self.first_step, self.step, self.ended = 0, step, True
        self.losses = {name: values.tolist() for name, values in losses.items()}

    def add_sample(self, step: int, image: torch.Tensor) -> None:
        """Keep a sample (H, W, 3) in [0, 1] among ComfyUI's temporary files. Raises OSError."""
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        name = f"contextual_inversion_{uuid.uuid4().hex}_{step}.jpg"
        pixels = (image.clamp(0, 1).numpy() * 255).round().astype(np.uint8)
        try:
            Image.fromarray(pixels).save(folder / name, quality=92)
        except OSError:
            (folder / name).unlink(missing_ok=True)  # half of it
            raise
        self.samples.append({"step": step, "filename": name, "subfolder": "", "type": "temp"})

    def news(self, *, now: bool = False) -> None:
        """Send what is new, at most every PAUSE seconds unless it has to be `now`."""
        if not now and time.perf_counter() - self._sent_at < PAUSE:
            return
        count = max((len(values) for values in self.losses.values()), default=0)
        steps = range(self.first_step + self._sent_steps + 1, self.first_step + count + 1)
        values = {name: values[self._sent_steps :] for name, values in self.losses.items()}
        news = {**self._facts(), **thinned(steps, values), "samples": self.samples[self._sent_samples :]}
        self._sent_steps, self._sent_samples = count, len(self.samples)
        self._send(news)

    def whole(self) -> dict[str, Any]:
        """All of it, as JSON."""
        count = max((len(values) for values in self.losses.values()), default=0)
        steps = range(self.first_step + 1, self.first_step + count + 1)
        return {**self._facts(), **thinned(steps, self.losses), "samples": list(self.samples)}

    def _facts(self) -> dict[str, Any]:
        pace = (time.perf_counter() - self._began) / max(1, self.step - self.first_step)
        left = None if self.ended or self.step == self.first_step else pace * (self.total_steps - self.step)
        return {
            "version": 1,
            "node_id": self.node_id,
            "workflow": self.workflow,
            "step": self.step,
            "total_steps": self.total_steps,
            "seconds_left": left,
            "text": self.text,
            "ended": self.ended,
            "stoppable": self.stoppable,
        }

    def _send(self, data: Mapping[str, Any]) -> None:
        self._sent_at = time.perf_counter()
        # None is everybody.
        for page in {None} if None in self.watchers else tuple(self.watchers):
            try:
                PromptServer.instance.send_sync(EVENT, data, page)
            except OSError as error:  # a page that went away is no reason to end a training
                logging.warning("Contextual Inversion: the page was not reached: %s", error)


def running_workflow() -> str | None:
    """The id of the workflow that runs now, since a node of another one may have the same id. A program sends none."""
    queue = getattr(PromptServer.instance, "prompt_queue", None)
    extra = next((data for _, _, _, data, *_ in queue.get_current_queue_volatile()[0]), {}) if queue else {}
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    return workflow.get("id")


_watchers: dict[str | None, set[str | None]] = {}


def watchers() -> set[str | None]:
    """The pages that get the news of all trainings of the run that is now, by their ids at the server."""
    # A server that has run nothing yet has no such attribute.
    run = getattr(PromptServer.instance, "last_prompt_id", None)
    for past in set(_watchers) - {run}:
        del _watchers[past]
    return _watchers.setdefault(run, set())


def thinned(steps: Sequence[int], losses: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """{"steps", "losses"} with at most POINTS points: means over equally many steps, None (JSON) where not finite."""
    size = max(1, math.ceil(len(steps) / POINTS))
    starts = range(0, len(steps), size)
    return {
        "steps": [steps[min(start + size, len(steps)) - 1] for start in starts],
        "losses": {name: [_mean(values[start : start + size]) for start in starts] for name, values in losses.items()},
    }


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
