"""Trainings that run now, and what the page may ask about them: how they are, and to stop and keep what is learned.

A request names a node by its id and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
from aiohttp import web
from server import PromptServer

from ...core.training.run.events import Step
from ..comfy.folders import told
from .interrupted import Resumable
from .live_view import LiveView, watchers
from .reporting import STOPPED, Reporter

ROUTE = "/contextual_inversion"


@dataclass
class RunningTraining:
    """One node's training. Once `stop` is true it ends after the step it is in."""

    view: LiveView
    stop: bool = False


_running: dict[str, RunningTraining] = {}


@contextmanager
def announced(view: LiveView) -> Iterator[RunningTraining]:
    """While inside, the page finds this training."""
    training = _running[view.node_id] = RunningTraining(view)
    try:
        yield training
    finally:
        if _running.get(view.node_id) is training:
            del _running[view.node_id]
        if not view.ended:
            view.ended = True
            view.news(now=True)


def report(events: Any, reporter: Reporter, stop: Callable[[str], None] | None = None) -> Any:
    """Show every event of some work, which cancelling ends. Returns the last event; `events` are closed.

    With `stop` the page may ask to stop and keep: `stop` is then called with the reason.
    """
    reporter.view.stoppable = stop is not None
    with announced(reporter.view) as training, closing(events):
        for event in events:
            reporter(event)
            comfy.model_management.throw_exception_if_processing_interrupted()
            # Before its first step there is nothing to keep.
            if stop is not None and training.stop and isinstance(event, Step):
                stop(STOPPED)
    return reporter.finished


def report_resumable(
    work: Resumable,
    reporter: Reporter,
    go_on: bool,
    stop: Callable[[str], None] | None = None,
    save: Callable[[Any], object] | None = None,
    learned: Callable[[Any], Any] | None = None,
) -> Any:
    """As `report`, of work whose steps so far wait in a checkpoint when it is cancelled or an error ends it.

    Where it is not to `go_on` from such steps, they are removed first. `save` is called with the last event: where it
    fails, as on a full disk, all the steps still wait. Without it `learned` says what of the last event waits on the
    disk until a node saves it, and the node says where.
    """
    if not go_on:
        work.forget()
    try:
        finished = report(work.events(), reporter, stop)
    except comfy.model_management.InterruptProcessingException:
        reporter.interrupted(work.kept())
        raise
    if learned is not None:
        place = work.keep_finished(learned(finished), finished.step, getattr(finished, "stopped", None))
        reporter.add(
            "it is in memory alone: save it now" if place is None else f"until saved it waits in {told(place)}"
        )
        return finished
    if save is not None:
        save(finished)
    work.forget()
    return finished


def add_routes() -> None:
    """GET .../training?client=ID: every running training as the page shows it, and from now on its news for that page.
    POST .../stop {"node_id"}: stop and keep."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(f"{ROUTE}/training")(answer_training)
        server.routes.post(f"{ROUTE}/stop")(answer_stop)


async def answer_training(request: web.Request) -> web.Response:
    """{node id: the whole of its view}. A connected page that names itself gets their news from now on: the one that
    queued them may have been closed."""
    page = request.query.get("client")
    if page in PromptServer.instance.sockets_metadata:
        watchers().add(page)
    return web.json_response({name: training.view.whole() for name, training in list(_running.items())})


async def answer_stop(request: web.Request) -> web.Response:
    """202 where the training will stop, 400 where no node is named, 404 where that node is not training, 409 where it
    has nothing to keep before its end."""
    asked = await _sent(request)
    node_id = asked.get("node_id") if isinstance(asked, dict) else None
    if not isinstance(node_id, str) or set(asked) != {"node_id"}:
        return web.json_response({"error": 'send {"node_id": "..."}'}, status=400)
    training = _running.get(node_id)
    if training is None:
        return web.json_response({"error": "that node is not training now"}, status=404)
    if not training.view.stoppable:
        return web.json_response({"error": "that node can be cancelled alone"}, status=409)
    training.stop = True
    return web.json_response({"stopping": node_id}, status=202)


async def _sent(request: web.Request) -> Any:
    """The JSON data of a request; None where it is none, nested too deep, or in an encoding that nobody knows."""
    try:
        return await request.json()
    except (ValueError, LookupError, RecursionError):
        return None
