"""The shipped graphs as the page lays them out: nothing lies on anything else, also once nodes show what they did."""

import json
from pathlib import Path

import pytest

WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows").glob("*.json"))
MODES = {"classic": False, "nodes2": True}
LINES = ["Type embedding:my-word in a prompt.", *(f"Saved {'folder/' * 12}{name}.safetensors" for name in "ab")]
SAVED = {
    "contextual_inversion_saved": [
        {
            "typed": "embedding:my-word",
            "files": [{"kind": kind, "name": "my-word.safetensors", "file": "x"} for kind in ("bundle", "embedding")],
        }
    ]
}
TRAINING = {
    "version": 1,
    "begins": True,
    "step": 2,
    "total_steps": 4,
    "seconds_left": None,
    "text": "",
    "ended": False,
    "stoppable": True,
    "steps": [1, 2],
    "losses": {name: [0.4, 0.3] for name in ("diffusion", "core/embedding", "core/attention")},
    "samples": [],
}
SHOW = f"""(() => {{
    for (const node of comfyAPI.app.app.rootGraph.nodes) {{
        const outputs = node.constructor.nodeData?.output ?? [];
        const detail = {{ ...{json.dumps(TRAINING)}, node_id: String(node.id) }};
        if (outputs.includes('LOSS_MAP')) comfyAPI.api.api.dispatchEvent(
            new CustomEvent('contextual_inversion.training', {{ detail }}));
        else if (/(Save|Predict)Conce|DualPath|SaveContext/.test(node.type))
            node.onExecuted({{ text: {json.dumps(LINES)}, .../SaveConce/.test(node.type) && {json.dumps(SAVED)} }});
    }}
}})()"""
"""What nodes show of a run, without a run."""
BOXES = """[...comfyAPI.app.app.rootGraph.nodes].map((node) => [`${node.id} ${node.title}`,
    node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]])"""
GROUPS = """comfyAPI.app.app.rootGraph.groups.map(({ pos, size }) =>
    [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]])"""
VIEWS = "comfyAPI.app.app.rootGraph.nodes.flatMap(({ widgets }) => widgets ?? []).map(({ element }) => element)"
DRAWN = f"{VIEWS}.filter((one) => one?.matches?.('.ci-training, .ci-text')).map((one) => one.isConnected)"


def overlapping(boxes: list[tuple]) -> list[tuple[str, str]]:
    """The names of every two boxes (name, left, top, right, bottom) that share some of the canvas."""
    return [
        (name, other)
        for at, (name, *one) in enumerate(boxes)
        for other, *two in boxes[at + 1 :]
        if one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
    ]


def outside(boxes: list[tuple], groups: list[tuple]) -> list[str]:
    """The names of boxes that no group holds whole."""
    return [
        name
        for name, *box in boxes
        if not any(g[0] <= box[0] and g[1] <= box[1] and box[2] <= g[2] and box[3] <= g[3] for g in groups)
    ]


@pytest.mark.parametrize("mode", MODES)
def test_no_node_grows_over_another(comfyui_server, pictures, mode):
    server = comfyui_server
    page = server.open(nodes_2=MODES[mode], light=False, width=1600, height=1100)
    wrong = {}
    for name in WORKFLOWS:
        server.load(page, name, 1, scale=0.35)
        # Nodes 2.0 measures what it has drawn.
        page.run("new Promise((resolve) => setTimeout(resolve, 1000))")
        page.run(SHOW)
        page.run("new Promise((resolve) => setTimeout(resolve, 1000))")
        drawn = page.run(DRAWN)
        assert drawn
        assert all(drawn)
        boxes = page.run(BOXES)
        found = overlapping(boxes), outside(boxes, page.run(GROUPS))
        page.photograph(pictures / f"{mode}-layout-{name}.png")
        wrong |= {name: found} if any(found) else {}
    assert wrong == {}
    page.close()
