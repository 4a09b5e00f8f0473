"""ComfyUI's page in another language: nodes, options, notes and help, and that what is saved and sent stays English."""

import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LANGUAGES = sorted(folder.name for folder in (REPOSITORY / "locales").iterdir() if folder.is_dir())
MODES = {"classic": False, "nodes2": True}
GRAPH = "train_a_word"
TRAIN = "ContextualInversionTrainConcept"
NOTE, TRAINING, PICTURES = 30, 6, 2
"""Node ids of the first note, a training, and a node of ours that has no title of its own."""
APP = "comfyAPI.app.app"


def said(language: str, place: str) -> dict:
    return json.loads((REPOSITORY / place.format(language)).read_text(encoding="utf-8"))


def shipped() -> dict:
    return json.loads((REPOSITORY / "workflows" / "2 CoRe against plain.json").read_text(encoding="utf-8"))


def node(number: int) -> str:
    return f"{APP}.rootGraph.getNodeById({number})"


def titles(graph: dict) -> list:
    """What nodes and groups are called, and what notes say."""
    notes = [one["widgets_values"] for one in graph["nodes"] if one["type"] == "MarkdownNote"]
    return [*notes, *sorted(one["title"] for one in (*graph["nodes"], *graph["groups"]) if "title" in one)]


@pytest.fixture
def server(comfyui_server):
    """English again afterwards."""
    yield comfyui_server
    comfyui_server.ask("/settings", {"Comfy.Locale": "en"})


@pytest.fixture
def opened(server, language, mode):
    """The page in that language, with the shipped graph."""
    server.ask("/settings", {"Comfy.Locale": language})
    page = server.open(nodes_2=MODES[mode], light=False, width=1500, height=1100)
    server.load(page, GRAPH, NOTE, scale=0.6)
    note = said(language, "js/notes/{}.json")[f"{GRAPH}/1"]
    page.wait(f"{node(NOTE)}.widgets[0].value === {json.dumps(note)}")
    yield page
    page.close()


def words(text: str) -> str:
    """The longest stretch of a Markdown line that has no mark in it."""
    return max(re.split(r"[`*\\[\]{}<>]", text), key=len).strip()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_graph_is_read_in_the_pages_language_and_saved_in_english(server, opened, pictures, language, mode):
    page, nodes, texts = opened, said(language, "locales/{}/nodeDefs.json"), said(language, "js/texts/{}.json")
    theirs, ours = nodes[TRAIN], nodes["ContextualInversionDemoImages"]
    shown = {
        one["id"]: one["title"]
        for one in page.run(f"{APP}.rootGraph.nodes.map(({{ id, title }}) => ({{ id: Number(id), title }}))")
    }
    for one in shipped()["nodes"]:
        assert "title" not in one or shown[one["id"]] == texts[one["title"]]
    assert shown[PICTURES] == ours["display_name"]
    groups = page.run(f"{APP}.rootGraph.groups.map(({{ title }}) => title)")
    assert groups == [texts[group["title"]] for group in shipped()["groups"]]

    # What ComfyUI translates: names of inputs and outputs, and the category.
    widgets = page.run(f"{node(TRAINING)}.widgets.map(({{ name, label }}) => [name, label])")
    ours_there = {name: label for name, label in widgets if name in theirs["inputs"]}
    assert len(ours_there) > 15
    assert ours_there == {name: theirs["inputs"][name]["name"] for name in ours_there}
    outputs = page.run(f"{node(TRAINING)}.outputs.map((one) => one.localized_name)")
    assert outputs == [one["name"] for one in theirs["outputs"].values()]
    category = page.run(f"{node(TRAINING)}.constructor.category")
    named = said(language, "locales/{}/main.json")["nodeCategories"]
    assert category == "/".join(named[part] for part in ("Contextual Inversion", "Train"))

    # What it leaves to us: the options. What is sent is English.
    labels = page.run(
        f"Object.fromEntries({node(TRAINING)}.widgets.filter(({{ options }}) => options.getOptionLabel)"
        ".map(({ name, options, value }) => [name, options.getOptionLabel(value)]))"
    )
    sent = page.run(f"{APP}.graphToPrompt().then(({{ output }}) => output[{TRAINING}].inputs)")
    assert {"train", "recipe", "masks_mean"} <= labels.keys()
    assert labels == {name: theirs["inputs"][name]["options"][sent[name]] for name in labels}
    assert titles(page.run(f"{APP}.rootGraph.serialize()")) == titles(shipped())
    page.photograph(pictures / f"{language}-{mode}-graph.png")

    # A note that somebody wrote in is theirs, in any language.
    page.run(f"{node(NOTE)}.widgets[0].value += ' mine'; {node(NOTE)}.title = 'mine'; undefined")
    written = page.run(f"{node(NOTE)}.widgets[0].value")
    page.run(f"{APP}.loadGraphData(JSON.parse(JSON.stringify({APP}.rootGraph.serialize())))")
    second = said(language, "js/notes/{}.json")[f"{GRAPH}/2"]
    page.wait(f"{node(31)}.widgets[0].value === {json.dumps(second)}")
    assert page.run(f"[{node(NOTE)}.widgets[0].value, {node(NOTE)}.title]") == [written, "mine"]
    assert [error for error in page.errors if "contextual" in error.lower()] == []


@pytest.mark.parametrize("mode", ["classic"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_tooltip_and_help_are_in_the_pages_language(server, opened, pictures, language):
    page, theirs = opened, said(language, "locales/{}/nodeDefs.json")[TRAIN]
    server.look_at(page, TRAINING)
    place = page.run(
        f"(() => {{ const node = {node(TRAINING)}; const widget = node.widgets.find(({{ name }}) => name === 'train');"
        f"return {APP}.canvas.ds.convertOffsetToCanvas([node.pos[0] + 80, node.pos[1] + widget.last_y + 10]); }})()"
    )
    page.run("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    page.point_at(*place)
    tip = json.dumps(theirs["inputs"]["train"]["tooltip"])
    page.wait(f"document.querySelector('.node-tooltip')?.textContent === {tip}")
    page.photograph(pictures / f"{language}-tooltip.png")

    page.run(f"{APP}.canvas.selectNode({node(TRAINING)}); undefined")
    page.wait("document.querySelector('[data-testid=info-button]')")
    page.run("document.querySelector('[data-testid=info-button]').click()")
    help_page = (REPOSITORY / "js" / "docs" / TRAIN / f"{language}.md").read_text(encoding="utf-8")
    line = json.dumps(words(help_page.split("\n\n")[1]))
    page.wait(f"document.body.textContent.includes({line})")
    page.photograph(pictures / f"{language}-help.png")


@pytest.mark.parametrize("mode", ["classic"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_another_language_is_taken_up_without_a_reload(opened, language):
    page = opened
    page.run(f"{APP}.extensionManager.setting.set('Comfy.Locale', 'en')")
    page.wait(f"{node(NOTE)}?.widgets?.[0].value === {json.dumps(titles(shipped())[0][0])}")
    page.wait(f"{node(NOTE)}.title === 'Read me first'")
    assert titles(page.run(f"{APP}.rootGraph.serialize()")) == titles(shipped())
    assert page.run(f"{node(TRAINING)}.widgets.every(({{ options }}) => !options.getOptionLabel)")
