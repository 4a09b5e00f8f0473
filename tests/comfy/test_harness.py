"""The in-process ComfyUI loads the pack and tells success, invalid graphs, errors, cancelling and the cache apart."""

import json
from collections.abc import Callable

PICTURE = {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 2, "color": 0xFF0000}}
SMALL_GRAPH = {"1": PICTURE, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}


def test_the_pack_loads_from_custom_nodes(comfyui):
    assert comfyui.pack_loaded
    mappings = comfyui.nodes.NODE_CLASS_MAPPINGS
    pack = "custom_nodes.contextual-inversion"
    ours = [name for name, node in mappings.items() if getattr(node, "RELATIVE_PYTHON_MODULE", "") == pack]
    assert ours
    assert all(name.startswith("ContextualInversion") for name in ours)


def test_values_and_pictures_come_back(run_graph, comfyui):
    run = run_graph(SMALL_GRAPH, keep={"picture": ("1", 0)})
    assert run.status == "success", run.error
    assert run.kept["picture"].shape == (2, 8, 16, 3)
    assert run.kept["picture"][..., 0].eq(1).all()
    names = [entry["filename"] for entry in run.ui["2"]["images"]]
    assert len(names) == 2
    assert all((comfyui.base / "temp" / name).is_file() for name in names)


def test_a_second_run_is_served_from_the_cache(run_graph):
    assert set(run_graph(SMALL_GRAPH).executed) == {"1", "2"}
    again = run_graph(SMALL_GRAPH, keep={"picture": ("1", 0)})
    assert again.executed == []
    assert again.kept["picture"].shape == (2, 8, 16, 3)


def test_an_invalid_graph_does_not_run(run_graph):
    run = run_graph({**SMALL_GRAPH, "1": {**PICTURE, "inputs": {**PICTURE["inputs"], "width": -1}}})
    assert run.status == "invalid"
    assert "1" in run.error["node_errors"]


def node_that(act: Callable[[], None]) -> type:
    """An output node that does `act` when it runs."""

    class Node:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True
        CATEGORY = "test"

        def run(self) -> tuple[()]:
            act()
            return ()

    return Node


def test_an_error_in_a_node_is_reported(run_graph, comfyui, monkeypatch):
    def fail() -> None:
        raise ValueError("the reason")

    monkeypatch.setitem(comfyui.nodes.NODE_CLASS_MAPPINGS, "Fails", node_that(fail))
    run = run_graph({"1": {"class_type": "Fails", "inputs": {}}})
    assert run.status == "error"
    assert run.error["exception_type"] == "ValueError"
    assert "the reason" in run.error["exception_message"]


def test_cancelling_interrupts_the_running_node(run_graph, comfyui, monkeypatch):
    import comfy.model_management

    check = comfy.model_management.throw_exception_if_processing_interrupted
    monkeypatch.setitem(comfyui.nodes.NODE_CLASS_MAPPINGS, "Checks", node_that(check))

    def cancel_when_it_starts(event: str, data: object) -> None:
        if event == "executing":
            comfyui.nodes.interrupt_processing(True)

    graph = {"1": {"class_type": "Checks", "inputs": {}}}
    assert run_graph(graph, on_event=cancel_when_it_starts).status == "interrupted"
    assert run_graph(graph).status == "success"


def test_a_saved_workflow_becomes_the_prompt_the_page_sends(run_ui_workflow, tmp_path):
    workflow = {
        "last_node_id": 2,
        "last_link_id": 1,
        "nodes": [
            {
                "id": 1,
                "type": "EmptyImage",
                "inputs": [],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
                "widgets_values": [32, 24, 1, 255],
                "mode": 0,
                "properties": {},
            },
            {
                "id": 2,
                "type": "PreviewImage",
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "outputs": [],
                "widgets_values": [],
                "mode": 0,
                "properties": {},
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow))
    run = run_ui_workflow(path, overrides={"EmptyImage": {"width": 48}}, keep={"picture": ("1", 0)})
    assert run.status == "success", run.error
    assert run.kept["picture"].shape == (1, 24, 48, 3)
