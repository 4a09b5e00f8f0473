"""A training's events as progress, pictures and a line of text on the node."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping

import torch
from comfy.utils import ProgressBar
from server import PromptServer

from ..core.training.events import Event, Finished, Preview, Started, Step
from .live_view import live_picture, smoothed

PICTURE_LIMIT = 1024
"""Pixels that a preview may be wide on its way to the page; ours are smaller."""


class Reporter:
    """Call it with every event. `finished` is the last one."""

    def __init__(self, node_id: str, total_steps: int) -> None:
        self.node_id = node_id
        self.bar = ProgressBar(total_steps, node_id=node_id)
        self.losses: dict[str, list[float]] = {}
        self.sample: torch.Tensor | None = None
        self.finished: Finished | None = None
        self._first_step, self._began = 0, time.perf_counter()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._first_step, self._began = event.first_step, time.perf_counter()
            if event.first_step:
                self.say(f"continued at step {event.first_step} of {event.total_steps}")
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Preview):
            self.sample = event.images[0]
            self._show(event.step)
        elif isinstance(event, Finished):
            self.finished = event
            self.say(self._conclusion(event))

    def interrupted(self, kept: int) -> None:
        """Say what becomes of a training that was cancelled."""
        if kept:
            self.say(f"stopped; {kept} steps are kept, queue again to go on from there")
        else:
            self.say("stopped before the first step")

    def say(self, text: str) -> None:
        """A line of text on the node."""
        PromptServer.instance.send_progress_text(text, self.node_id)

    def _step(self, event: Step) -> None:
        if event.losses is None:
            self.bar.update_absolute(event.step, event.total_steps)
            return
        self._remember(event.losses)
        self._show(event.step)
        self.say(self._status(event))

    def _remember(self, losses: Mapping[str, torch.Tensor]) -> None:
        past = max((len(values) for values in self.losses.values()), default=self._first_step)
        for name, values in losses.items():
            self.losses.setdefault(name, [math.nan] * past).extend(values.tolist())

    def _show(self, step: int) -> None:
        picture = live_picture(self.sample, self.losses, self.bar.total)
        self.bar.update_absolute(step, preview=("JPEG", picture, PICTURE_LIMIT))

    def _status(self, event: Step) -> str:
        figures = [f"{name} {smoothed(values)[-1]:.3g}" for name, values in self.losses.items()]
        pace = (time.perf_counter() - self._began) / max(1, event.step - self._first_step)
        left = f"{pace * (event.total_steps - event.step):.0f} s left"
        return " · ".join([f"step {event.step} of {event.total_steps}", *figures, left])

    def _conclusion(self, event: Finished) -> str:
        if event.stopped is not None:
            logging.warning("Contextual Inversion: training ended early: %s", event.stopped)
            return f"ended early: {event.stopped}"
        return f"learned <{event.concept.name}> in {event.step} steps, {event.seconds:.0f} s"
