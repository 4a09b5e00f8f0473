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
from PIL import Image, ImageOps
from server import PromptServer

from .outlook import Outlook
from .pace import Pace, estimate, kind_of

EVENT = "contextual_inversion.training"
OUTPUT = "contextual_inversion_training"
"""Key of the node's output in ComfyUI's history; js/extension.js reads it."""
PAUSE = 0.3
"""Seconds between two events, so that fast steps do not flood the page."""
POINTS = 600
"""Points of a curve in the whole: more than a node is wide."""
MOST_PIXELS = 512
"""A side of a training picture as it is shown."""
ENDS = ("learned", "done", "stopped", "early", "cancelled", "failed")
"""How a training can end: with a word; a pretraining, with what it made; stopped and kept; of itself, with the steps
before it went wrong; without anything for the graph."""


class LiveView:
    """The losses and samples of one node's training so far. `news` sends what is new to those who watch."""

    def __init__(self, node_id: str, outlook: Outlook) -> None:
        self.node_id, self.total_steps, self.outlook = node_id, outlook.steps, outlook
        graph, self.workflow = running()
        self.kind = kind_of(graph, node_id, outlook)
        self.plan = {**outlook.facts(), "seconds": estimate(self.kind, outlook)}
        self.pace = Pace()
        self.first_step = self.step = 0
        self.losses: dict[str, list[float]] = {}
        self.samples: list[dict[str, Any]] = []
        self.picture: dict[str, Any] | None = None
        """The file of a training picture, which samples are shown beside."""
        self.text = self.word = self.error = ""
        self.end, self.kept, self.ended_at = "", 0, 0.0
        """How it ended, one of `ENDS`, with how many steps kept, and when."""
        self.watchers = watchers()
        self.watchers.add(PromptServer.instance.client_id)
        self.stoppable = False
        """Whether the page may stop it and keep what was learned."""
        self._sent_steps, self._sent_samples, self._sent_at = 0, 0, -math.inf

    def start(self, first_step: int) -> None:
        """Begin, or go on behind a number of steps that are not seen here."""
        self.first_step = self.step = first_step
        self._send({**self.whole(), "begins": True})

    def remember(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Append each loss's (k,) values of the latest steps. A loss that is new gets NaN for those before."""
        past = max((len(values) for values in self.losses.values()), default=0)
        for name, values in losses.items():
            self.losses.setdefault(name, [math.nan] * past).extend(values.tolist())

    def complete(self, losses: Mapping[str, torch.Tensor], step: int) -> None:
        """Take the whole (step,) history of every loss at the end, also what went before a continued training."""
        self._sent_steps += self.first_step
        self.first_step, self.step = 0, step
        self.losses = {name: values.tolist() for name, values in losses.items()}

    def finish(self, end: str, *, text: str = "", error: str = "", kept: int = 0) -> None:
        """It is over: `end` is one of `ENDS`, `error` what went wrong, and `kept` the steps that wait for another
        run."""
        self.end, self.error, self.kept, self.ended_at = end, error, kept, time.time()
        self.text = text or self.text

    @property
    def ended(self) -> bool:
        return self.end != ""

    def add_sample(self, step: int, image: torch.Tensor) -> None:
        """Keep a sample (H, W, 3) in [0, 1] among ComfyUI's temporary files. Raises OSError."""
        self.samples.append({"step": step, **_written(pixels_of(image), str(step))})

    def add_picture(self, image: torch.Tensor) -> None:
        """Keep the middle square of a training picture (H, W, 3) in [0, 1], to be shown beside samples. Raises
        OSError."""
        self.picture = _written(ImageOps.fit(pixels_of(image), (min(MOST_PIXELS, *image.shape[:2]),) * 2), "picture")

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
        curves = thinned(steps, self.losses)
        return {**self._facts(), **curves, "samples": list(self.samples), "plan": self.plan, "picture": self.picture}

    def _facts(self) -> dict[str, Any]:
        steps = self.total_steps - self.step
        pictures = round(self.outlook.pictures * steps / max(1, self.total_steps))
        left = None if self.ended else self.pace.left(steps, pictures)
        return {
            "version": 1,
            "node_id": self.node_id,
            "workflow": self.workflow,
            "step": self.step,
            "total_steps": self.total_steps,
            "seconds_left": left,
            "text": self.text,
            "ended": self.ended,
            "end": self.end,
            "error": self.error,
            "kept": self.kept,
            "ended_at": self.ended_at,
            "word": self.word,
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


def pixels_of(image: torch.Tensor) -> Image.Image:
    """A picture (H, W, 3) in [0, 1] as one of PIL's."""
    return Image.fromarray((image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8))


def _written(picture: Image.Image, name: str) -> dict[str, Any]:
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"contextual_inversion_{uuid.uuid4().hex}_{name}.jpg"
    try:
        picture.save(folder / name, quality=92)
    except OSError:
        (folder / name).unlink(missing_ok=True)  # half of it
        raise
    return {"filename": name, "subfolder": "", "type": "temp"}


def running() -> tuple[dict[str, Any] | None, str | None]:
    """The graph that runs now in API format, and the id of its workflow, since a node of another one may have the same
    id. A program sends no id."""
    queue = getattr(PromptServer.instance, "prompt_queue", None)
    now = queue.get_current_queue_volatile()[0] if queue else []
    graph, extra = next(((graph, extra) for _, _, graph, extra, *_ in now), (None, {}))
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    return graph, workflow.get("id")


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
