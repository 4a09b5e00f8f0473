"""Save Concept in ComfyUI's page: what to type is copied, files are taken along, and Load Concept has them at once."""

import json

import pytest
import torch
from safetensors.torch import load_file

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import save_embedding

PREFIX = "ContextualInversion"
MODES = {"classic": False, "nodes2": True}
APP = "comfyAPI.app.app"
LOADED, SAVES, EMPTY, INSIDE = 1, 2, 3, 4
"""Node ids: a Load Concept with a file, a Save Concept, and two Load Concepts without one, the last in a subgraph."""
BUTTONS = f"{APP}.rootGraph.getNodeById({SAVES}).widgets.find(({{ name }}) => name === 'says')?.element"
DONE = "fetch('/queue').then((answer) => answer.json()).then((queue) => Object.values(queue).flat().length === 0)"


def graph(name: str) -> dict:
    loads = {"type": f"{PREFIX}LoadConcept", "size": [320, 160], "flags": {}, "order": 0, "mode": 0}
    outputs = [{"name": "concept", "type": "CONCEPT", "links": None}, {"name": "text", "type": "STRING", "links": None}]
    saves = {"type": f"{PREFIX}SaveConcept", "pos": [420, 60], "size": [420, 260], "flags": {}, "order": 1, "mode": 0}
    first = [{**outputs[0], "links": [1]}, outputs[1]]
    takes = [{"name": "concept", "type": "CONCEPT", "link": 1}]
    values = [name, "add a number", True, False, False, "auto"]
    nodes = [
        loads | {"id": LOADED, "pos": [20, 60], "outputs": first, "widgets_values": ["embeddings/seed.safetensors"]},
        saves | {"id": SAVES, "inputs": takes, "widgets_values": values},
        loads | {"id": EMPTY, "pos": [20, 400], "outputs": outputs, "widgets_values": ["(nothing saved yet)"]},
        loads
        | {"id": INSIDE, "pos": [420, 440], "outputs": outputs, "widgets_values": ["embeddings/seed.safetensors"]},
    ]
    empty = {"last_node_id": 4, "last_link_id": 1, "groups": [], "config": {}, "extra": {}, "version": 0.4}
    return {**empty, "nodes": nodes, "links": [[1, LOADED, 0, SAVES, 0, "CONCEPT"]]}


@pytest.fixture
def opened(comfyui_server, mode):
    server = comfyui_server
    vectors = {"clip_l": 0.02 * torch.ones(2, 64)}
    seed = Concept("seed", "castle", vectors)
    save_embedding(seed, server.base / "models" / "embeddings", "seed", if_exists="replace")
    page = server.open(nodes_2=MODES[mode], light=False, width=1280, height=720)
    page.run(f"{APP}.loadGraphData({json.dumps(graph(f'word-{mode}'))})")
    page.wait(f"{APP}.rootGraph.getNodeById({INSIDE})?.graph && true")
    page.run(
        f"(() => {{ const graph = {APP}.rootGraph; {APP}.canvas.setGraph(graph);"
        f"graph.convertToSubgraph(new Set([graph.getNodeById({INSIDE})])); }})()"
    )
    server.look_at(page, LOADED)
    yield page
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()


def every_loader(page, what: str) -> list:
    """`what` of the file widget of each Load Concept, also that in the subgraph."""
    return page.run(
        f"[{APP}.rootGraph, ...{APP}.rootGraph.subgraphs.values()].flatMap(({{ nodes }}) => nodes)"
        f".filter(({{ type }}) => type === '{PREFIX}LoadConcept').map(({{ widgets: [widget] }}) => widget.{what})"
    )


def fetched(page, place: str) -> dict:
    """What the browser would keep of a download: status, name, and the bytes."""
    return page.run(
        f"fetch({json.dumps(place)}).then(async (answer) => ({{ status: answer.status,"
        "name: answer.headers.get('Content-Disposition'), bytes: [...new Uint8Array(await answer.arrayBuffer())] }))"
    )


@pytest.mark.parametrize("mode", MODES)
def test_what_was_saved_is_copied_taken_along_and_loaded(comfyui_server, opened, pictures, tmp_path, mode):
    server, page, name = comfyui_server, opened, f"word-{mode}"
    bundle = f"contextual_inversion/{name}.safetensors"
    assert not any(bundle in values for values in every_loader(page, "options.values"))
    page.run(f"{APP}.queuePrompt(0)")
    page.wait(f"{BUTTONS}?.querySelector('.ci-saved')")
    page.wait(DONE)

    # Load Concept has the file, without a key and in a subgraph too; one that had nothing to choose takes it.
    page.wait(f"{APP}.rootGraph.getNodeById({EMPTY}).widgets[0].options.values.includes('{bundle}')")
    found = every_loader(page, "options.values")
    assert len(found) == 3
    assert all(bundle in values for values in found)
    assert sorted(every_loader(page, "value")) == sorted([bundle, *["embeddings/seed.safetensors"] * 2])
    added = f"LiteGraph.createNode('{PREFIX}LoadConcept').widgets[0].options.values"
    assert bundle in page.run(added), "one that is added later, too"
    if mode == "nodes2":
        page.click(f"[data-node-id='{EMPTY}'] [role=combobox]")
        page.wait(f"[...document.querySelectorAll('[role=option]')].some((one) => one.textContent.includes('{name}'))")
        page.key("Escape")

    # The keyboard reaches every button, and one sees where it is.
    page.run(f"Object.assign({BUTTONS}, {{ id: 'says' }}); undefined")
    names = page.run("[...document.querySelectorAll('#says button')].map((one) => one.textContent)")
    assert names == ["Copy", "Bundle ↓", "Embedding ↓"]
    page.run("document.querySelector('#says').focus()")
    for text in names:
        page.key("Tab")
        assert page.run("document.activeElement.textContent") == text
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.photograph(pictures / f"{mode}-saved.png")

    # Copy puts what to type where it can be pasted from.
    page.run(
        "window.pasted = null; Object.defineProperty(navigator, 'clipboard', { configurable: true,"
        "value: { writeText: async (text) => { window.pasted = text; } } }); undefined"
    )
    page.click("#says .ci-saved button")
    page.wait("window.pasted")
    assert (
        page.run("window.pasted") == page.run("document.querySelector('#says code').textContent") == f"embedding:{name}"
    )
    assert page.run("document.querySelector('#says .ci-saved button').textContent") == "Copied"

    # The files are those on the disk, byte for byte.
    noted = "function () { window.links.push(this.href); }"
    page.run(f"window.links = []; HTMLAnchorElement.prototype.click = {noted}; undefined")
    for at, kind in ((2, "contextual_inversion"), (3, "embeddings")):
        page.click(f"#says .ci-saved button:nth-of-type({at})")
        page.wait(f"window.links.length === {at - 1}")
        answer = fetched(page, page.run("window.links.at(-1)"))
        path = server.base / "models" / kind / f"{name}.safetensors"
        assert answer["status"] == 200
        assert bytes(answer["bytes"]) == path.read_bytes()
        assert answer["name"] == f"attachment; filename*=UTF-8''{path.name}"
        (tmp_path / path.name).write_bytes(bytes(answer["bytes"]))
        assert load_file(tmp_path / path.name)

    # One that is gone is said to be.
    path.unlink()
    page.click("#says .ci-saved button:nth-of-type(3)")
    page.wait("document.querySelector('#says .ci-saved button:nth-of-type(3)').disabled")
    assert "not there any more" in page.run("document.querySelector('#says').textContent")
