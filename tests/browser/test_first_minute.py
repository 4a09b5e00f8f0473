"""What a person meets first: a graph that can be read, a search that finds, and a field that says what it lacks."""

import json

import pytest

MODES = {"classic": False, "nodes2": True}
APP = "comfyAPI.app.app"
STARTER, TRAINING, PICTURES_SHOWN = "first_word", 6, "3"
"""The graph's name, the node that trains in it, and the one that shows the training pictures."""
READABLE = 0.6
"""ComfyUI's scale: below 0.572 (letters of 14 pixels become 8) the classic canvas draws no text at all."""
SEARCH = (
    "(query) => document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')"
    ".nodeSearchService.searchNode(query).slice(0, 3).map((node) => node.name)"
)
TRAIN, SHOW = "TrainConcept", "ShowAttention"
QUERIES = {
    "textual inversion": TRAIN,
    "train embedding": TRAIN,
    "embedding trainer": TRAIN,
    "dreambooth": TRAIN,
    "custom diffusion": TRAIN,
    "XTI": TRAIN,
    "lora trainer": TRAIN,
    "personalization": TRAIN,
    "train my photos": TRAIN,
    "learn a new word": TRAIN,
    "train concept": TRAIN,
    "fine-tune": TRAIN,
    "second stage": "RefineConcept",
    "prompt repair": "OptimizeForPrompt",
    "fix prompt": "OptimizeForPrompt",
    "prompt ignored": "OptimizeForPrompt DiagnoseConcept CoReRegularizer",
    "use embedding": "ApplyConcept",
    "apply embedding": "ApplyConcept",
    "save embedding": "SaveConcept",
    "load embedding": "LoadConcept",
    "load textual inversion": "LoadConcept",
    "regularization": "CoReRegularizer MLMRegularizer NearestWordRegularizer",
    "core": "CoReRegularizer",
    "MLM": "MLMRegularizer",
    "contrastive": "NearestWordRegularizer",
    "regularization prompts": "ContextPrompts",
    "prompt list": "ContextPrompts",
    "attention map": SHOW,
    "cross attention": f"{SHOW} RecordAttention AttendImage",
    "heatmap": SHOW,
    "DAAM": f"{SHOW} RecordAttention AttendImage",
    "word mask": SHOW,
    "CLIP score": "EvaluateConcept",
    "DINO": "EvaluateConcept",
    "metrics": "EvaluateConcept",
    "dreambench": "EvaluateConcept",
    "image grid": "ResultSheet",
    "contact sheet": "ResultSheet",
    "one shot": "PredictConcept TunePredictedConcept",
    "single image": "PredictConcept TunePredictedConcept",
    "tiny model": "LoadDemoModel",
    "example images": "DemoImages",
    "two paths": "DualPath",
}
"""What people type, and the nodes of which one must be among the first three that ComfyUI's own search finds."""


def open_template(server, page, name: str) -> None:
    """As a link to it opens it, fitted to the window by ComfyUI."""
    page.open(f"http://{server.address}/?template={name}&source=contextual-inversion")
    server.wait_until_ready(page)
    page.wait(f"{APP}.rootGraph?.extra?.contextual_inversion_graph === '{name}'")
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")


@pytest.mark.parametrize("mode", MODES)
def test_the_starter_can_be_read_as_it_opens(comfyui_server, pictures, mode):
    page = comfyui_server.open(nodes_2=MODES[mode], light=False, width=1440, height=900)
    open_template(comfyui_server, page, STARTER)
    scale, blurred = page.run(f"[{APP}.canvas.ds.scale, {APP}.canvas.low_quality]")
    page.photograph(pictures / f"{mode}-starter.png")
    assert scale >= READABLE
    assert not blurred, "the canvas draws boxes without words"
    shown = page.run(
        f"(() => {{ const {{ ds, canvas }} = {APP}.canvas; return {APP}.rootGraph.nodes.map((node) => ["
        "(node.pos[0] + ds.offset[0]) * ds.scale, (node.pos[1] - 30 + ds.offset[1]) * ds.scale]); })()"
    )
    assert all(0 <= x <= 1440 and 0 <= y <= 900 for x, y in shown), "every title is in the window"
    page.close()


def test_search_finds_what_people_type(comfyui_server):
    assert len(QUERIES) >= 40
    page = comfyui_server.open(nodes_2=False, light=False)
    found = page.run(f"{json.dumps(list(QUERIES))}.map({SEARCH})")
    page.close()
    missed = {
        query: first
        for (query, wanted), first in zip(QUERIES.items(), found, strict=True)
        if not {f"ContextualInversion{name}" for name in wanted.split()} & set(first)
    }
    assert missed == {}


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_class_word_is_marked_and_nothing_trains(comfyui_server, pictures, mode):
    page = comfyui_server.open(nodes_2=MODES[mode], light=False, width=1440, height=900)
    open_template(comfyui_server, page, STARTER)
    node = f"{APP}.rootGraph.getNodeById({TRAINING})"
    page.run(
        f"(() => {{ const node = {node}; const at = node.inputs.findIndex(({{ name }}) => name === 'class_word');"
        "node.disconnectInput(at); })()"
    )
    earlier = comfyui_server.queue(page)
    page.wait(f"Boolean({APP}.lastNodeErrors?.[{TRAINING}])")
    details = page.run(f"{APP}.lastNodeErrors[{TRAINING}].errors.map((error) => error.details)")
    assert "class_word is empty" in details[0]
    marked = page.run(f"{node}.inputs.filter((one) => one.hasErrors).map(({{ name }}) => name)")
    page.photograph(pictures / f"{mode}-marked.png")
    assert "class_word" in marked
    # ComfyUI runs what hangs on nothing that is wrong: here the pictures to look at.
    assert comfyui_server.finished(page, earlier)["prompt"][4] == [PICTURES_SHOWN]
    page.close()


def test_a_small_rate_is_shown_as_it_is_set(comfyui_server):
    page = comfyui_server.open(nodes_2=False, light=False)
    open_template(comfyui_server, page, STARTER)
    find = f"{APP}.rootGraph.getNodeById({TRAINING}).widgets.find(({{ name }}) => name === 'learning_rate')"
    shown = page.run(f"(() => {{ const rate = {find}; rate.value = 5e-6; return rate._displayValue; }})()")
    assert float(shown) == 5e-6
    page.close()
