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
from .before_running import is_graph, outlook_of
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


def report(
    events: Any,
    reporter: Reporter,
    stop: Callable[[str], None] | None = None,
    kept: Callable[[], int] = lambda: 0,
) -> Any:
    """Show every event of some work, which cancelling ends, and how it ends. Returns the last event; `events` are
    closed.

    With `stop` the page may ask to stop and keep: `stop` is then called with the reason. `kept` says how many steps
    wait for another run where this one comes to nothing.
    """
    with failing_in_words(reporter, kept):
        return _followed(events, reporter, stop)


@contextmanager
def failing_in_words(reporter: Reporter, kept: Callable[[], int]) -> Iterator[None]:
    """Whatever ends the work inside, the page says so."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        reporter.interrupted(kept())
        raise
    except Exception as error:
        reporter.failed(error, kept())
        raise


def _followed(events: Any, reporter: Reporter, stop: Callable[[str], None] | None) -> Any:
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
    finished = report(work.events(), reporter, stop, work.kept)
    if learned is not None:
        place = work.keep_finished(learned(finished), finished.step, getattr(finished, "stopped", None))
        reporter.add(
            "it is in memory alone: save it now" if place is None else f"until saved it waits in {told(place)}"
        )
        return finished
    if save is not None:
        with failing_in_words(reporter, work.kept):
            save(finished)
    work.forget()
    return finished


def add_routes() -> None:
    """GET .../training?client=ID: every running training as the page shows it, and from now on its news for that page.
    POST .../stop {"node_id"}: stop and keep. POST .../outlook {"nodes", "graph"}: what nodes of a graph will do."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(f"{ROUTE}/training")(answer_training)
        server.routes.post(f"{ROUTE}/stop")(answer_stop)
        server.routes.post(f"{ROUTE}/outlook")(answer_outlook)


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


async def answer_outlook(request: web.Request) -> web.Response:
    """{node id: its `outlook_of`} of those `nodes` that train, in the `graph` as it would be queued now (API format).
    400 where it is none. Nothing is run or loaded."""
    asked = await _sent(request)
    nodes, graph = (asked.get("nodes"), asked.get("graph")) if isinstance(asked, dict) else (None, None)
    if not isinstance(nodes, list) or not all(isinstance(one, str) for one in nodes) or not is_graph(graph):
        return web.json_response({"error": 'send {"nodes": [ids], "graph": a graph in API format}'}, status=400)
    every = {node_id: outlook_of(graph, node_id) for node_id in nodes}
    return web.json_response({node_id: one for node_id, one in every.items() if one is not None})


async def _sent(request: web.Request) -> Any:
    """The JSON data of a request; None where it is none, nested too deep, or in an encoding that nobody knows."""
    try:
        return await request.json()
    except (ValueError, LookupError, RecursionError):
        return None
