"""Shipped graphs by the names they are linked by.

ComfyUI's list of templates shows the files' names, "1 Train a word" among them, but its page opens no link
(`?template=NAME&source=contextual-inversion`) whose name has a space, and looks for a file of exactly that name. So
each graph also answers to the name it calls itself by, which stays when its file is renamed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from server import PromptServer

PACK = Path(__file__).parents[2]  # not resolved: a link in custom_nodes is known by its own name
MARK = "contextual_inversion_graph"
"""The entry of a graph's `extra` that says which shipped one it is."""


def linked_names(folder: Path) -> dict[str, Path]:
    """The graphs in a folder by the names that they call themselves, as far as their files are called otherwise."""
    named = {
        json.loads(file.read_text(encoding="utf-8")).get("extra", {}).get(MARK): file
        for file in sorted(folder.glob("*.json"))
    }
    return {name: file for name, file in named.items() if name and name != file.stem}


def add_routes() -> None:
    """Has the server answer for these names. A whole path comes before the folder that ComfyUI serves below it."""
    server = getattr(PromptServer, "instance", None)  # none where nodes are loaded without a page
    if server is None:
        return
    for name, file in linked_names(PACK / "workflows").items():
        server.routes.get(f"/workflow_templates/{PACK.name}/{name}.json")(answer_with(file))


def answer_with(file: Path) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def answer(_: web.Request) -> web.FileResponse:
        return web.FileResponse(file)

    return answer
