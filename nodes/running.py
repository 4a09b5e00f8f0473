"""Trainings that run now, and what the page may ask about them: how they are, and to stop and keep what is learned.

A request names a node by its id and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web
from server import PromptServer

from .live_view import LiveView

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


def add_routes() -> None:
    """GET .../training: every running training as the page shows it. POST .../stop {"node_id"}: stop and keep."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(f"{ROUTE}/training")(answer_training)
        server.routes.post(f"{ROUTE}/stop")(answer_stop)


async def answer_training(request: web.Request) -> web.Response:
    """{node id: the whole of its view}."""
    return web.json_response({name: training.view.whole() for name, training in list(_running.items())})


async def answer_stop(request: web.Request) -> web.Response:
    """202 where the training will stop, 400 where no node is named, 404 where that node is not training."""
    try:
        asked = await request.json()
    except ValueError:
        asked = None
    node_id = asked.get("node_id") if isinstance(asked, dict) else None
    if not isinstance(node_id, str) or set(asked) != {"node_id"}:
        return web.json_response({"error": 'send {"node_id": "..."}'}, status=400)
    training = _running.get(node_id)
    if training is None:
        return web.json_response({"error": "that node is not training now"}, status=404)
    training.stop = True
    return web.json_response({"stopping": node_id}, status=202)
