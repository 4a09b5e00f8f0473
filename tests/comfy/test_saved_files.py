"""Files that a node saved, as the page fetches them: by what was drawn for each, and by nothing else."""

import asyncio
from pathlib import Path

import pytest

from . import test_nodes_concepts as concepts

KEY = "contextual_inversion_saved"
given = concepts.given


@pytest.fixture
def fetch(comfyui):
    """fetch(path): status, headers and bytes of one request to the pack's routes."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    async def request(path: str) -> tuple:
        application = web.Application()
        application.add_routes([one for one in comfyui.server.routes if one.path.startswith("/contextual_inversion")])
        async with TestClient(TestServer(application)) as client:
            answer = await client.get(f"/contextual_inversion/saved/{path}")
            return answer.status, answer.headers, await answer.read()

    return lambda path: asyncio.run(request(path))


@pytest.fixture
def graph(given) -> dict:
    return given(thing=concepts.concept("gizmo")) | {"save": concepts.saved()}


def test_every_file_is_given_by_what_was_drawn_for_it(run_graph, graph, fetch):
    import folder_paths

    (told,) = run_graph(graph).ui["save"][KEY]
    assert told["typed"] == "embedding:gizmo"
    assert [(one["kind"], one["name"]) for one in told["files"]] == [
        ("bundle", "gizmo.safetensors"),
        ("embedding", "gizmo.safetensors"),
    ]
    folders = ("contextual_inversion", "embeddings")
    for one, kind in zip(told["files"], folders, strict=True):
        status, headers, content = fetch(one["file"])
        (path,) = [folder / "gizmo.safetensors" for folder in map(Path, folder_paths.get_folder_paths(kind)[:1])]
        assert status == 200
        assert content == path.read_bytes()
        assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''gizmo.safetensors"
    # Another run draws anew, and what came before is there still.
    (again,) = run_graph({**graph, "save": concepts.saved(name="other")}).ui["save"][KEY]
    assert not {one["file"] for one in told["files"]} & {one["file"] for one in again["files"]}
    assert fetch(told["files"][0]["file"])[0] == 200

    path.unlink()
    assert fetch(told["files"][1]["file"])[0] == 404, "it is gone from the disk"


@pytest.mark.parametrize(
    "path",
    [
        "gizmo.safetensors",
        "..%2F..%2F..%2Fetc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        "../gizmo.safetensors",
        "%00",
        "x" * 5000,
        "",
    ],
)
def test_no_path_is_taken_from_a_page(run_graph, graph, fetch, path):
    assert run_graph(graph).status == "success"
    status, _, content = fetch(path)
    assert status in (400, 404)
    assert b"gizmo" not in content
