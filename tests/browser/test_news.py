"""What the page does with what the server says: panels and lines of text on the right nodes and on no other."""

import json

import pytest

MODES = {"classic": False, "nodes2": True}
TRAINING, REGULARIZER, SAVING = 6, 5, 24
"""Node ids in train_a_word."""
NEWS = {"version": 1, "begins": True, "step": 1, "total_steps": 4, "seconds_left": None, "text": "", "ended": False}
NEWS |= {"stoppable": True, "steps": [1], "losses": {"diffusion": [0.4]}, "samples": []}
LINES = ["Type embedding:my-word in a prompt.", "Saved my-word.safetensors"]


def tell(page, node: int, workflow: str | None) -> None:
    """The page hears of a training, as from the server."""
    detail = NEWS | {"node_id": str(node), "workflow": workflow}
    page.run(
        "comfyAPI.api.api.dispatchEvent("
        f"new CustomEvent('contextual_inversion.training', {{ detail: {json.dumps(detail)} }}))"
    )


def views(page, node: int) -> list[str]:
    """What the views on a node say, those that the page has drawn."""
    page.run("new Promise((resolve) => setTimeout(resolve, 300))")
    return page.run(
        f"comfyAPI.app.app.rootGraph.getNodeById({node}).widgets.map(({{ element }}) => element)"
        ".filter((one) => one?.matches?.('.ci-training, .ci-text') && one.isConnected)"
        ".map((one) => (one.querySelector('.ci-status [role=status]') ?? one).textContent)"
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_training_of_another_workflow_is_not_shown(comfyui_server, mode):
    """Node ids are small numbers, so another workflow has them too; one that is no training is never one."""
    page = comfyui_server.open(nodes_2=MODES[mode], light=False)
    comfyui_server.load(page, "train_a_word", TRAINING, scale=0.4)
    for node in (TRAINING, REGULARIZER):
        tell(page, node, "another")
        assert views(page, node) == (["Not run yet"] if node == TRAINING else [])
    here = page.run("comfyAPI.app.app.rootGraph.id")
    for workflow in (None, here):
        tell(page, REGULARIZER, workflow)
        assert views(page, REGULARIZER) == []
        tell(page, TRAINING, workflow)
        assert views(page, TRAINING) == ["Step 1 of 4"]
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_what_a_node_says_is_shown(comfyui_server, pictures, mode):
    page = comfyui_server.open(nodes_2=MODES[mode], light=True)
    comfyui_server.load(page, "train_a_word", SAVING)
    assert views(page, SAVING) == []
    for _ in range(2):
        page.run(f"comfyAPI.app.app.rootGraph.getNodeById({SAVING}).onExecuted({{ text: {json.dumps(LINES)} }})")
        assert views(page, SAVING) == ["\n".join(LINES)]
    page.photograph(pictures / f"{mode}-says-light.png")
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_with_pictures_a_verdict_is_said(comfyui_server, pictures, mode):
    """ComfyUI shows the pictures; the table under them would be too long."""
    page = comfyui_server.open(nodes_2=MODES[mode], light=False)
    comfyui_server.load(page, "train_a_word", SAVING)
    output = {"text": ["a long table"], "images": []}
    page.run(f"comfyAPI.app.app.rootGraph.getNodeById({SAVING}).onExecuted({json.dumps(output)})")
    assert views(page, SAVING) == []
    lines = ["mine may swallow its prompt: ...", "other should keep its prompt: ..."]
    output["contextual_inversion_verdict"] = [{"label": "", "says": "", "text": line} for line in lines]
    page.run(f"comfyAPI.app.app.rootGraph.getNodeById({SAVING}).onExecuted({json.dumps(output)})")
    assert views(page, SAVING) == ["\n".join(lines)]
    page.photograph(pictures / f"{mode}-verdict.png")
    page.close()
