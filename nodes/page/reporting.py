"""Long work's events as progress, a live view and a line of text on the node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.utils import ProgressBar
from server import PromptServer

from ...core.training.contextualizer.pretraining import Pretrained
from ...core.training.one_picture.pretraining import PretrainedEncoder
from ...core.training.run.events import CheckpointFailed, CheckpointSaved, Finished, Preview, Started, Step
from .live_view import LiveView

STOPPED = "stopped and kept"
"""Why a training ended that the page stopped."""


class Reporter:
    """Call it with every event of a training or a pretraining; `finished` is the last one.

    `conclusion` says what came of it. Without one that is what a training learned, or why it ended early. `remark` is
    added to it.
    """

    def __init__(
        self, node_id: str, total_steps: int, conclusion: Callable[[Any], str] | None = None, remark: str = ""
    ) -> None:
        self.node_id = node_id
        self.conclusion, self.remark = conclusion or self._learned, remark
        self.bar = ProgressBar(total_steps, node_id=node_id)
        self.view = LiveView(node_id, total_steps)
        self.finished: Any = None
        self._trouble = ""

    def __call__(self, event: object) -> None:
        if isinstance(event, Started):
            self.view.start(event.first_step)
            if event.first_step:
                self.say(f"continued at step {event.first_step} of {event.total_steps}")
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Preview):
            self._show(event)
        elif isinstance(event, CheckpointSaved):
            self._trouble = ""
        elif isinstance(event, CheckpointFailed):
            self._trouble = f"; no checkpoint of step {event.step}: {event.reason}"
            self.say(f"goes on{self._trouble}")
        elif isinstance(event, Finished | Pretrained | PretrainedEncoder):
            self.finished = event
            self.view.complete(event.losses, event.step)
            self.say(self.conclusion(event) + self.remark + self._trouble)

    def interrupted(self, kept: int) -> None:
        """Say what becomes of work that was cancelled."""
        self.view.ended = True
        if kept:
            self.say(f"stopped; {kept} steps are kept, queue again to go on from there")
        else:
            self.say("stopped before the first step")

    def add(self, text: str) -> None:
        """More behind the line of text on the node."""
        self.say(f"{self.view.text}; {text}")

    def say(self, text: str) -> None:
        """A line of text on the node."""
        self.view.text = text
        self.view.news(now=True)
        PromptServer.instance.send_progress_text(text, self.node_id)

    def _show(self, event: Preview) -> None:
        try:
            self.view.add_sample(event.step, event.images[0])
        except OSError as error:  # as on a full disk: a picture is no reason to end a training
            logging.warning("Contextual Inversion: no preview of step %d: %s", event.step, error)
            self.say(f"goes on; no preview of step {event.step}: {error}")
        self.view.news(now=True)

    def _step(self, event: Step) -> None:
        self.bar.update_absolute(event.step, event.total_steps)
        self.view.step = event.step
        if event.losses is not None:
            self.view.remember(event.losses)
        self.view.news()

    def _learned(self, event: Finished) -> str:
        name = event.concept.name
        if event.stopped == STOPPED:
            return f"stopped at step {event.step} of {self.bar.total}; <{name}> is kept as it was then"
        if event.stopped is not None:
            logging.warning("Contextual Inversion: training ended early: %s", event.stopped)
            return f"ended early: {event.stopped}"
        return f"learned <{name}> in {event.step} steps, {event.seconds:.0f} s"


def loss_map(losses: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Every term's (steps,) history as a LOSS_MAP, whose "loss" is the diffusion loss where it has none of its own."""
    values = {name: history.tolist() for name, history in losses.items()}
    return {"loss": values.get("diffusion", next(iter(values.values()))), **values}
