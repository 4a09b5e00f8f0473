"""Long work's events as progress, a live view and a line of text on the node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from server import PromptServer

from ...core.training.contextualizer.pretraining import Pretrained
from ...core.training.one_picture.pretraining import PretrainedEncoder
from ...core.training.run.events import CheckpointFailed, CheckpointSaved, Finished, Preview, Started, Step
from .live_view import LiveView
from .outlook import Outlook
from .pace import remember

STOPPED = "stopped and kept"
"""Why a training ended that the page stopped."""
OUT_OF_MEMORY = "out of memory: switch on gradient_checkpointing, or take a smaller batch or resolution"


class Reporter:
    """Call it with every event of a training or a pretraining; `finished` is the last one.

    `conclusion` says what came of it. Without one that is what a training learned, or why it ended early. `remark` is
    added to it.
    """

    def __init__(
        self, node_id: str, outlook: Outlook, conclusion: Callable[[Any], str] | None = None, remark: str = ""
    ) -> None:
        self.node_id = node_id
        self.conclusion, self.remark = conclusion or self._learned, remark
        self.bar = ProgressBar(outlook.steps, node_id=node_id)
        self.view = LiveView(node_id, outlook)
        self.finished: Any = None
        self._trouble = ""

    def __call__(self, event: object) -> None:
        self._time(event)
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
            self._finish(event)

    def show_beside(self, image: torch.Tensor) -> None:
        """Show samples beside this training picture (H, W, 3) in [0, 1], where there are samples."""
        if self.view.outlook.pictures == 0:
            return
        try:
            self.view.add_picture(image)
        except OSError as error:  # as on a full disk: a picture is no reason to end a training
            logging.warning("Contextual Inversion: no training picture beside the samples: %s", error)

    def interrupted(self, kept: int) -> None:
        """Say what becomes of work that was cancelled."""
        self.view.finish("cancelled", kept=kept)
        going_on = f"; {kept} steps are kept, Run again to go on from there" if kept else ""
        self.say(f"cancelled{going_on or ' before the first step'}")

    def failed(self, error: Exception, kept: int) -> None:
        """Say what went wrong, in the error's own words."""
        said = OUT_OF_MEMORY if comfy.model_management.is_oom(error) else str(error) or type(error).__name__
        self.view.finish("failed", error=said, kept=kept)
        self.say(f"failed: {said}")

    def add(self, text: str) -> None:
        """More behind the line of text on the node."""
        self.say(f"{self.view.text}; {text}")

    def say(self, text: str) -> None:
        """A line of text on the node."""
        self.view.text = text
        self.view.news(now=True)
        PromptServer.instance.send_progress_text(text, self.node_id)

    def _show(self, event: Preview) -> None:
        if event.originals and self.view.picture is None:
            self.show_beside(event.images[0])
        try:
            self.view.add_sample(event.step, event.images[event.originals])
        except OSError as error:  # as on a full disk: a picture is no reason to end a training
            logging.warning("Contextual Inversion: no preview of step %d: %s", event.step, error)
            self.say(f"goes on; no preview of step {event.step}: {error}")
        self.view.news(now=True)

    def _time(self, event: object) -> None:
        pace = self.view.pace
        if isinstance(event, Started):
            pace.started()
        elif isinstance(event, Preview):
            pace.drew()
        else:
            pace.stepped(1 if isinstance(event, Step) else 0)

    def _finish(self, event: Any) -> None:
        self.finished = event
        remember(self.view.kind, self.view.pace)
        self.view.word = getattr(getattr(event, "concept", None), "name", "")
        self.view.complete(event.losses, event.step)
        stopped = getattr(event, "stopped", None)
        whole = "learned" if self.view.word else "done"
        end = whole if stopped is None else "stopped" if stopped == STOPPED else "early"
        text = self.conclusion(event) + self.remark + self._trouble
        self.view.finish(end, error=(stopped or "") if end == "early" else "")
        self.say(text)

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
