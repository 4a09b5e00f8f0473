"""A browser, the front end's files served alone, and a ComfyUI server with the pack for the tests that need one."""

import contextlib
import functools
import http.server
import importlib.util
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.49.6",
    "Comfy.Minimap.Visible": False,
    "Comfy.Window.UnloadConfirmation": False,
}
STYLED = "document.querySelector('link[href*=\"/style.css\"]')"
HISTORY = "/history?max_items=1000"
LOADED = (
    "!!comfyAPI.app.app.extensionManager.workflow.activeWorkflow?.activeState"
    "&& !comfyAPI.app.app.extensionManager.spinner"
)
"""A page that restores a workflow of before turns its spinner until the one that its address names is there too."""


def sibling(path: Path) -> ModuleType:
    """A module of the tests by its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chromium = sibling(Path(__file__).with_name("chromium.py"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """Call it for a new tab."""
    with chromium.running_chromium(chromium.find_chromium(), tmp_path_factory.mktemp("profile")) as new_page:
        yield new_page


@pytest.fixture(scope="session")
def pictures(repository: Path) -> Path:
    """Where photographs of the pages go, to be looked at."""
    return repository / "out" / "browser"


@pytest.fixture(scope="session")
def static(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address and folder of a server of plain files; its /js is the pack's."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "js").symlink_to(repository / "js", target_is_directory=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


@dataclass
class Server:
    """A running ComfyUI."""

    address: str
    base: Path
    browser: Callable[[], Any]

    def ask(self, path: str, content: object = None) -> Any:
        """The JSON of a request; with content it is a POST."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            body = response.read()
        return json.loads(body) if body else None

    def open(self, *, nodes_2: bool, light: bool, width: int = 1200, height: int = 900) -> Any:
        """ComfyUI's page, as a person has set it."""
        theme = "light" if light else "dark"
        self.ask("/settings", SETTINGS | {"Comfy.VueNodes.Enabled": nodes_2, "Comfy.ColorPalette": theme})
        page = self.browser()
        page.size(width, height)
        page.open(f"http://{self.address}/")
        self.wait_until_ready(page)
        return page

    def wait_until_ready(self, page: Any) -> None:
        page.wait(f"{STYLED} && {LOADED}", 240)

    def load(self, page: Any, workflow: str, node: int, *, scale: float = 1.0) -> None:
        """Opens a shipped workflow as ComfyUI's list of templates does, and moves a node to the upper left."""
        page.run(
            f"comfyAPI.api.api.fetchApi('/workflow_templates/contextual-inversion/{workflow}.json')"
            ".then((answer) => answer.json())"
            f".then((graph) => comfyAPI.app.app.loadGraphData(graph, true, true, '{workflow}'))"
        )
        page.wait(f"comfyAPI.app.app.rootGraph.getNodeById({node})?.graph && true")
        self.look_at(page, node, scale)

    def look_at(self, page: Any, node: int, scale: float = 1.0) -> None:
        """Moves a node to the upper left of the window."""
        page.run(
            f"(() => {{ const {{ canvas, rootGraph }} = comfyAPI.app.app;"
            f"const [x, y] = rootGraph.getNodeById({node}).pos;"
            f"canvas.ds.scale = {scale}; canvas.ds.offset = [90 / {scale} - x, 110 / {scale} - y];"
            "canvas.setDirty(true, true); })()"
        )

    def queue(self, page: Any) -> int:
        """Presses Run. Returns how many runs ComfyUI remembered before."""
        earlier = len(self.ask(HISTORY))
        page.run("comfyAPI.app.app.queuePrompt(0)")
        return earlier

    def finished(self, page: Any, earlier: int) -> dict:
        """The newest entry of the history, once there is one more than `earlier` and the queue is empty."""
        page.wait(
            f"Promise.all(['/queue', '{HISTORY}'].map((route) => comfyAPI.api.api.fetchApi(route)"
            ".then((answer) => answer.json()))).then(([queue, history]) => Object.keys(history).length > "
            f"{earlier} && queue.queue_running.length + queue.queue_pending.length === 0)",
            400,
        )
        return list(self.ask(HISTORY).values())[-1]


@pytest.fixture(scope="session")
def comfyui_server(
    browser: Callable[[], Any], comfyui_path: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    workflows = sibling(repository / "tests" / "comfy" / "test_workflows.py")
    base = tmp_path_factory.mktemp("server") / "base"
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(workflows.running_server(comfyui_path, repository, base))
        yield Server(address, base, browser)


@pytest.fixture(autouse=True)
def nothing_remembered(request: pytest.FixtureRequest) -> None:
    """The server has no history of the tests before: a view would show what they made."""
    if "comfyui_server" in request.fixturenames:
        request.getfixturevalue("comfyui_server").ask("/history", {"clear": True})
