"""ComfyUI's page in another language: nodes, options, notes and help, and that what is saved and sent stays English."""

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LANGUAGES = sorted(folder.name for folder in (REPOSITORY / "locales").iterdir() if folder.is_dir())
MODES = {"classic": False, "nodes2": True}
GRAPH = "train_a_word"
TRAIN = "ContextualInversionTrainConcept"
NOTE, TRAINING, PICTURES = 3, 6, 2
"""Node ids of the first note, a training, and a node of ours that has no title of its own."""
APP = "comfyAPI.app.app"


def said(language: str, place: str) -> dict:
    return json.loads((REPOSITORY / place.format(language)).read_text(encoding="utf-8"))


def shipped() -> dict:
    return json.loads((REPOSITORY / "workflows" / f"{GRAPH}.json").read_text(encoding="utf-8"))


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
