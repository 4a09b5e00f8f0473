"""Long work's events as progress, a live view and a line of text on the node."""

from __future__ import annotations

import logging
from typing import Any

from comfy.utils import ProgressBar
from server import PromptServer

from ..core.training.contextualizer_pretraining import Pretrained
from ..core.training.events import Finished, Preview, Started, Step
from .live_view import LiveView

STOPPED = "stopped and kept"
"""Why a training ended that the page stopped."""


class Reporter:
    """Call it with every event of a training or a pretraining. `finished` is the last one."""

    def __init__(self, node_id: str, total_steps: int) -> None:
        self.node_id = node_id
        self.bar = ProgressBar(total_steps, node_id=node_id)
        self.view = LiveView(node_id, total_steps)
        self.finished: Any = None

    def __call__(self, event: object) -> None:
        if isinstance(event, Started):
            self.view.start(event.first_step)
            if event.first_step:
                self.say(f"continued at step {event.first_step} of {event.total_steps}")
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Preview):
            self.view.add_sample(event.step, event.images[0])
            self.view.news(now=True)
        elif isinstance(event, Finished | Pretrained):
            self.finished = event
            self.view.complete(event.losses, event.step)
            self.say(self._conclusion(event))

    def interrupted(self, kept: int) -> None:
        """Say what becomes of work that was cancelled."""
        self.view.ended = True
        if kept:
            self.say(f"stopped; {kept} steps are kept, queue again to go on from there")
        else:
            self.say("stopped before the first step")

    def say(self, text: str) -> None:
        """A line of text on the node."""
        self.view.text = text
        self.view.news(now=True)
        PromptServer.instance.send_progress_text(text, self.node_id)

    def _step(self, event: Step) -> None:
        self.bar.update_absolute(event.step, event.total_steps)
        self.view.step = event.step
        if event.losses is not None:
            self.view.remember(event.losses)
        self.view.news()

    def _conclusion(self, event: Finished) -> str:
        name = event.concept.name
        if event.stopped == STOPPED:
            return f"stopped at step {event.step} of {self.bar.total}; <{name}> is kept as it was then"
        if event.stopped is not None:
            logging.warning("Contextual Inversion: training ended early: %s", event.stopped)
            return f"ended early: {event.stopped}"
        return f"learned <{name}> in {event.step} steps, {event.seconds:.0f} s"


class PretrainingReporter(Reporter):
    """A contextualizer's pretraining."""

    def _conclusion(self, event: Pretrained) -> str:
        return f"pretrained in {event.step} steps, {event.seconds:.0f} s"
