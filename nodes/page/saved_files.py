"""What nodes have saved, as the page is told of it, and those files for whoever wants to take one along.

A request names a file by what was drawn for it when it was saved. No path is taken from a page.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web
from comfy_api.latest import ui
from server import PromptServer

from .running import ROUTE

OUTPUT = "contextual_inversion_saved"
"""Key of the node's output in ComfyUI's history; the page reads it in js/saved.js."""
MOST = 1000
"""Files that are offered at once; then the oldest is no more."""

_offered: OrderedDict[str, Path] = OrderedDict()


def saved_output(lines: Sequence[str], written: Mapping[str, Path], typed: str = "") -> dict[str, Any]:
    """A node's ui of files that it has written, each under what it is for people: its lines of text, and what the page
    needs for its buttons. `typed` is what to type in a prompt."""
    files = [{"kind": kind, "name": path.name, "file": _offer(path)} for kind, path in written.items()]
    return {**ui.PreviewText("\n".join(lines)).as_dict(), OUTPUT: [{"typed": typed, "files": files}]}


def _offer(path: Path) -> str:
    drawn = secrets.token_urlsafe(16)
    _offered[drawn] = path
    while len(_offered) > MOST:
        _offered.popitem(last=False)
    return drawn


def add_routes() -> None:
    """GET .../saved/{file}: the file for which that was drawn."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get(f"{ROUTE}/saved/{{file}}")(answer_saved)


async def answer_saved(request: web.Request) -> web.StreamResponse:
    """The file under its own name, to be kept; 404 where nothing was drawn by that name or the file is gone."""
    path = _offered.get(request.match_info["file"])
    if path is None or not path.is_file():
        return web.json_response({"error": "this file is not there any more"}, status=404)
    name = f"attachment; filename*=UTF-8''{quote(path.name)}"
    return web.FileResponse(path, headers={"Content-Disposition": name, "Content-Type": "application/octet-stream"})
