"""A real ComfyUI in this process, on the CPU, with this pack loaded from its custom_nodes folder. No port is opened.

    def test_something(run_graph):
        run = run_graph({"1": {"class_type": "EmptyImage", "inputs": {...}}}, keep={"image": ("1", 0)})
        assert run.kept["image"].shape == (1, 64, 64, 3)

`run_graph` and `run_ui_workflow` share one executor within a test, so a second call finds the first one's cache.
"""

import asyncio
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # where models and graphs for several files are made

PACK_FOLDER = "contextual-inversion"
SINK = "ContextualInversionTestSink"
Prompt = dict[str, dict[str, Any]]
Event = tuple[str, Any, str | None]


class StubServer:
    """What the executor, the nodes and their progress handlers ask of ComfyUI's web server; remembers what was sent."""

    def __init__(self) -> None:
        from aiohttp import web
        from app.node_replace_manager import NodeReplaceManager

        self.client_id: str | None = "test"
        self.last_node_id: str | None = None
        # Like ComfyUI's own, it has no `last_prompt_id` before the first prompt.
        self.sockets_metadata = {"test": {"feature_flags": {"supports_preview_metadata": True}}}
        self.routes = web.RouteTableDef()
        self.node_replace_manager = NodeReplaceManager()
        self.sent: list[Event] = []
        self.on_event: Callable[[str, Any], None] | None = None

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))
        if self.on_event is not None:
            self.on_event(event, data)

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.send_sync("progress_text", {"text": text, "node": node_id}, sid)


@dataclass
class Run:
    """What came of one queued prompt."""

    status: str
    """success, error, interrupted, or invalid (it did not pass validation and nothing ran)."""
    error: Mapping[str, Any] | None
    """ComfyUI's own account of what went wrong: the execution_error message, or the validation errors."""
    ui: dict[str, dict[str, Any]]
    """Per output node what the page receives (`images`, `text`, ...)."""
    kept: dict[str, Any]
    """The values asked for with `keep`."""
    executed: list[str]
    """Node ids in the order they ran; a node served from the cache is not among them."""
    sent: list[Event] = field(repr=False, default_factory=list)
    """Everything sent to the page: (event, data, client)."""

    def events(self, name: str) -> list[Any]:
        """The data of every event of that name, in order."""
        return [data for event, data, _ in self.sent if event == name]


@dataclass
class ComfyUI:
    """The loaded ComfyUI: its modules, its server's stand-in and its folders."""

    path: Path
    base: Path
    nodes: Any
    execution: Any
    folder_paths: Any
    server: StubServer
    sink: dict[str, Any]
    pack_loaded: bool

    def object_info(self, class_types: set[str]) -> dict[str, Any]:
        """What GET /object_info answers for these node types."""
        known = sorted(class_types & set(self.nodes.NODE_CLASS_MAPPINGS))
        return {name: node_info(name, self.nodes) for name in known}

    def executor(self) -> Any:
        """A prompt executor with an empty classic cache, as main.py makes it by default."""
        limits = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        return self.execution.PromptExecutor(self.server, self.execution.CacheType.CLASSIC, limits)


def node_info(class_type: str, nodes: Any) -> dict[str, Any]:
    """A node's schema as the page and the UI-to-API converter read it."""
    node = nodes.NODE_CLASS_MAPPINGS[class_type]
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {
        "name": class_type,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(class_type, class_type),
        "input": inputs,
        "input_order": {group: list(members) for group, members in inputs.items()},
        "output": node.RETURN_TYPES,
        "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
        "output_node": getattr(node, "OUTPUT_NODE", False),
        "category": getattr(node, "CATEGORY", ""),
    }


@pytest.fixture(scope="session")
def comfyui(comfyui_path: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> ComfyUI:
    """ComfyUI with its extra nodes and this pack, in folders of its own."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "temp", "user", *(f"models/{kind}" for kind in MODEL_FOLDERS)):
        (base / name).mkdir(parents=True)
    pack = base / "custom_nodes" / PACK_FOLDER
    pack.symlink_to(repository, target_is_directory=True)

    configure(comfyui_path, base)
    import execution
    import folder_paths
    import nodes
    import server

    stub = StubServer()
    server.PromptServer.instance = stub
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    loaded = asyncio.run(nodes.load_custom_node(str(pack), set(nodes.NODE_CLASS_MAPPINGS)))
    sink: dict[str, Any] = {}
    nodes.NODE_CLASS_MAPPINGS[SINK] = sink_node(sink)
    return ComfyUI(comfyui_path, base, nodes, execution, folder_paths, stub, sink, loaded)


MODEL_FOLDERS = ("checkpoints", "clip", "embeddings", "loras", "vae", "diffusion_models", "text_encoders")


def configure(comfyui_path: Path, base: Path) -> None:
    """Settles the arguments that ComfyUI's modules read while they are being imported."""
    if "comfy.cli_args" in sys.modules or "folder_paths" in sys.modules:
        pytest.fail("ComfyUI was imported before its arguments were set; import it inside tests, after `comfyui`")
    sys.path.insert(0, str(comfyui_path))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not os.environ.get("CONTEXTUAL_INVERSION_TEST_GPU")
    args.base_directory = str(base)
    args.database_url = "sqlite:///:memory:"


def sink_node(sink: dict[str, Any]) -> type:
    """An output node that puts what it receives into `sink`; it always runs, so that cached values arrive too."""

    class Sink:
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"value": (AnyType("*"), {}), "key": ("STRING", {})}}

        RETURN_TYPES = ()
        FUNCTION = "keep"
        OUTPUT_NODE = True
        CATEGORY = "test"

        @classmethod
        def IS_CHANGED(cls, **_: Any) -> float:
            return float("nan")

        def keep(self, value: Any, key: str) -> tuple[()]:
            sink[key] = value
            return ()

    return Sink


class AnyType(str):
    """A socket type equal to every other."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        'supports(row, says="yes"): what a test that takes a family shows of a row of docs/models.md; `says` is what '
        "stands there, for all families or by their kinds (scripts/support_matrix.py)",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the marks of the collected tests say, for scripts/support_matrix.py."""
    place = os.environ.get("SUPPORT_MATRIX")
    if place:
        from family_graphs import TITLES

        cells = [cell for item in session.items for cell in supported(item, TITLES)]
        told = {"families": list(dict.fromkeys(TITLES.values())), "cells": cells}
        Path(place).write_text(json.dumps(told), encoding="utf-8")


def supported(item: pytest.Item, titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """One entry for each mark of a test that is run for a family."""
    values = getattr(getattr(item, "callspec", None), "params", {}).values()
    kind = next((value for value in values if isinstance(value, str) and value in titles), None)
    skipped = any(item.get_closest_marker(name) for name in ("skip", "skipif", "xfail"))
    found = []
    for mark in item.iter_markers("supports") if kind is not None else ():
        says = mark.kwargs.get("says", "yes")
        said = says if isinstance(says, str) else says.get(kind)
        cell = {"row": mark.args[0], "family": titles[kind], "says": said, "test": item.nodeid, "skipped": skipped}
        found += [cell] if said is not None else []
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `loader` run once for each of their module's `KINDS` of models."""
    if "loader" in metafunc.fixturenames:
        metafunc.parametrize("loader", metafunc.module.KINDS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def loader(comfyui: ComfyUI, request: pytest.FixtureRequest) -> Any:
    """The API prompt of a node that gives MODEL, CLIP and VAE of a family beyond Stable Diffusion, always the same
    ones: those of `random_families.build`."""
    pytest.importorskip("diffusers")
    from family_graphs import LOADER
    from random_families import build

    built = build(request.param)

    class Loader:
        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "test"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"kind": ("STRING", {})}}

        def load(self, kind: str) -> tuple[Any, Any, Any]:
            return built.model, built.clip, built.vae

    comfyui.nodes.NODE_CLASS_MAPPINGS[LOADER] = Loader
    yield {"class_type": LOADER, "inputs": {"kind": request.param}}
    del comfyui.nodes.NODE_CLASS_MAPPINGS[LOADER]


RunGraph = Callable[..., Run]


@pytest.fixture
def forget_finished(comfyui: ComfyUI) -> Callable[[], None]:
    """Removes what was learned and not saved: the same training is then a training again."""
    return lambda: shutil.rmtree(comfyui.base / "user" / "contextual_inversion" / "finished", ignore_errors=True)


@pytest.fixture
def run_graph(comfyui: ComfyUI, forget_finished: Callable[[], None]) -> Any:
    """Queues a prompt in API format and waits for it.

    Call: run_graph(prompt, keep={"name": (node id, output)}, on_event=callback(event, data)) -> Run
    """
    import comfy.model_management

    executor = comfyui.executor()
    forget_finished()

    def run(
        prompt: Prompt,
        keep: Mapping[str, tuple[str, int]] | None = None,
        on_event: Callable[[str, Any], None] | None = None,
    ) -> Run:
        return execute(comfyui, executor, prompt, keep or {}, on_event)

    yield run
    comfyui.sink.clear()
    comfy.model_management.unload_all_models()


@pytest.fixture
def run_after_restart(comfyui: ComfyUI, run_graph: RunGraph) -> RunGraph:
    """As `run_graph`, of a ComfyUI that remembers nothing but its files."""

    def run(
        prompt: Prompt,
        keep: Mapping[str, tuple[str, int]] | None = None,
        on_event: Callable[[str, Any], None] | None = None,
    ) -> Run:
        return execute(comfyui, comfyui.executor(), prompt, keep or {}, on_event)

    return run


@pytest.fixture
def run_ui_workflow(comfyui: ComfyUI, run_graph: RunGraph) -> RunGraph:
    """Runs a saved workflow file (UI format) as the page would queue it.

    Call: run_ui_workflow(path, overrides={class type or node id: {input: value}}, keep=..., on_event=...) -> Run
    An override that fits no node, or names an input the node does not have, is an error. With `instead` nodes of a
    class are of another one, which takes no inputs and has the same outputs.
    """

    def run(
        path: Path,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        instead: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Run:
        prompt = overridden(api_prompt(comfyui, path), overrides or {})
        for node in prompt.values():
            if other := (instead or {}).get(node["class_type"]):
                node.update(class_type=other, inputs={})
        return run_graph(prompt, **options)

    return run


def api_prompt(comfyui: ComfyUI, path: Path) -> Prompt:
    """A UI-format workflow file as the API prompt that the page would send."""
    converter = pytest.importorskip("comfy_cli.workflow_to_api", reason="comfy-cli converts UI workflows")
    workflow = json.loads(path.read_text(encoding="utf-8"))
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    class_types = {node["type"] for graph in graphs for node in graph["nodes"]}
    return converter.convert_ui_to_api(workflow, comfyui.object_info(class_types))


def overridden(prompt: Prompt, overrides: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """The prompt with other input values."""
    for target, values in overrides.items():
        nodes = [node for name, node in prompt.items() if target in (name, node["class_type"])]
        unknown = [name for name in values for node in nodes if name not in node["inputs"]]
        if not nodes or unknown:
            raise KeyError(f"override {target!r} {unknown or ''} fits no node of the workflow")
        for node in nodes:
            node["inputs"].update(values)
    return prompt


def execute(
    comfyui: ComfyUI,
    executor: Any,
    prompt: Prompt,
    keep: Mapping[str, tuple[str, int]],
    on_event: Callable[[str, Any], None] | None,
) -> Run:
    """Validates the prompt and executes it, as ComfyUI's queue does."""
    sinks = {f"keep-{key}": sink_call(key, *source) for key, source in keep.items()}
    whole = json.loads(json.dumps(prompt)) | sinks
    prompt_id = uuid.uuid4().hex
    valid, problem, outputs, node_errors = asyncio.run(comfyui.execution.validate_prompt(prompt_id, whole, None))
    if not valid:
        return Run("invalid", {"error": problem, "node_errors": node_errors}, {}, {}, [])

    comfyui.sink.clear()
    comfyui.server.sent = []
    comfyui.server.on_event = on_event
    comfyui.server.last_prompt_id = prompt_id
    try:
        executor.execute(whole, prompt_id, {"client_id": "test"}, outputs)
    finally:
        comfyui.server.on_event = None
    messages = dict(executor.status_messages)
    error = messages.get("execution_error") or messages.get("execution_interrupted")
    status = next(name for name in ("error", "interrupted", "success") if f"execution_{name}" in messages)
    sent = comfyui.server.sent
    executed = [data["node"] for event, data, _ in sent if event == "executing" and data.get("node")]
    ui = {name: value for name, value in executor.history_result["outputs"].items() if name not in sinks}
    return Run(status, error, ui, dict(comfyui.sink), [name for name in executed if name not in sinks], sent)


def sink_call(key: str, node_id: str, output: int) -> dict[str, Any]:
    """The prompt entry of a sink behind one output."""
    return {"class_type": SINK, "inputs": {"value": [node_id, output], "key": key}}
