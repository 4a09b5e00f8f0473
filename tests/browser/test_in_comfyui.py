"""The views in ComfyUI's own page, classic canvas and Nodes 2.0: the shipped graphs, driven as a person does.

Photographs of every state go to out/browser; they are there to be looked at.
"""

import json
import re

import pytest

PREFIX = "ContextualInversion"
SHORT = {
    f"{PREFIX}TrainConcept": {"steps": 3, "batch": 2, "preview_every": 3, "continue_interrupted": False},
    f"{PREFIX}DiagnoseConcept": {"steps": 2, "most_prompts": 1},
    "KSampler": {"steps": 4},
}
SHOW, LEARNED, STOPPED = 9, 25, 6
"""Node ids: the first viewer and that of the learned word in see_what_a_word_does, a training in train_a_word."""
DIAGNOSED = 26
"""The node there whose verdict is read."""
LAST_OF_ONE, LAST = 11, 28
"""The last node id of the part of see_what_a_word_does that samples one picture, and of all its parts."""
MODES = {"classic": False, "nodes2": True}
AWAY = (960, 1000)
"""A place of the window where no node is."""
VIEW, PANEL = "#view-under-test", "#panel-under-test"


OUT_OF_SIGHT = """[...document.querySelectorAll('.ci-training')].every((view) => {
    const box = view.getBoundingClientRect();
    const outside = box.right <= 0 || box.bottom <= 0 || box.left >= innerWidth || box.top >= innerHeight;
    return outside || !view.checkVisibility();
})"""
"""The view of a node that is outside of the window is so, too."""


def shorten(page, seed: int, changes: dict[int, dict]) -> None:
    """Fewer steps everywhere, other `changes` by node id, and a seed of its own, since ComfyUI remembers results."""
    page.run(
        f"(() => {{ const [short, changes] = [{json.dumps(SHORT)}, {json.dumps(changes)}];"
        f"short.{PREFIX}TrainConcept.seed = short.KSampler.seed = {seed};"
        "for (const node of comfyAPI.app.app.rootGraph.nodes)"
        "for (const [name, value] of Object.entries({ ...short[node.type], ...changes[node.id] }))"
        "node.widgets.find((widget) => widget.name === name).value = value; })()"
    )


def name_view(page, node: int, kind: str, name: str) -> None:
    """Gives the view of a node an id, since a page can have several."""
    find = f"comfyAPI.app.app.rootGraph?.getNodeById({node})?.widgets?.find((one) => one.name === '{kind}')?.element"
    page.wait(f"(() => {{ const view = {find}; if (view) view.id = '{name[1:]}'; return Boolean(view); }})()")


def pinned(page) -> list[str]:
    return page.run(
        f"[...document.querySelectorAll('{VIEW} .ci-chip[aria-selected=true]')].map((chip) => chip.textContent)"
    )


def overlay(page) -> dict:
    """What lies over the picture: its description, and how many values the bytes of its pixels have."""
    return page.run(
        f"(() => {{ const canvas = document.querySelector('{VIEW} .ci-frame canvas');"
        "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "const label = canvas.getAttribute('aria-label');"
        "return { label, shades: new Set(data).size, data: canvas.toDataURL() }; })()"
    )


def boxes(page, selector: str) -> list[list[float]]:
    """Left, top, right and bottom of all such elements, in the window."""
    return page.run(
        f"[...document.querySelectorAll('{selector}')].map((one) => one.getBoundingClientRect())"
        ".map((box) => [box.left, box.top, box.right, box.bottom])"
    )


def said(page, slider: int) -> str:
    return page.run(f"document.querySelectorAll('{VIEW} .ci-range output')[{slider}].textContent")


def chip(word: int) -> str:
    """The selector of a word of the prompt, from 1."""
    return f"{VIEW} .ci-word:nth-child({word + 1})"


RED, CAT, ON, GRASS = chip(5), chip(6), chip(7), chip(9)


@pytest.mark.parametrize("mode", MODES)
def test_words_light_up_and_come_back_after_a_reload(comfyui_server, pictures, mode):
    server = comfyui_server
    page = server.open(nodes_2=MODES[mode], light=False, width=1000, height=1150)
    server.load(page, "see_what_a_word_does", SHOW)
    shorten(page, 100 + list(MODES).index(mode), {})
    name_view(page, SHOW, "attention", VIEW)
    assert "Queue" in page.run(f"document.querySelector('{VIEW} .ci-message').textContent")
    entry = server.finished(page, server.queue(page))
    assert entry["status"]["status_str"] == "success", entry["status"]
    page.wait(f"document.querySelector('{CAT}')")
    page.wait(f"document.querySelector('{VIEW} .ci-frame img').naturalWidth > 0")

    # Pointing at a word lays its map over the picture; a click pins it.
    page.point_at(*AWAY)
    assert overlay(page)["shades"] == 1, "nothing yet"
    page.point(CAT)
    page.wait(f"document.querySelector('{VIEW} .ci-tag')")
    seen = overlay(page)
    assert "cat" in seen["label"]
    assert seen["shades"] > 20
    for word in (RED, CAT, GRASS):
        page.click(word)
    page.point_at(*AWAY)
    assert pinned(page) == ["red", "cat", "grass"]
    assert "red, cat, grass" in overlay(page)["label"]
    page.photograph(pictures / f"{mode}-words.png")
    (picture,) = boxes(page, f"{VIEW} .ci-frame")
    tags = boxes(page, f"{VIEW} .ci-tag")
    assert len(tags) == 3
    for index, (left, top, right, bottom) in enumerate(tags):
        assert picture[0] - 1 <= left <= right <= picture[2] + 1
        assert picture[1] - 1 <= top <= bottom <= picture[3] + 1
        assert all(right <= a or c <= left or bottom <= b or d <= top for a, b, c, d in tags[:index])

    # One click makes the mask of the pinned words.
    mask = f"comfyAPI.app.app.rootGraph.getNodeById({SHOW}).widgets.find(({{ name }}) => name === 'mask_words').value"
    button = f"[...document.querySelectorAll('{VIEW} .ci-button')].find((one) => one.textContent === 'Use as mask')"
    page.run(f"{button}.click()")
    assert page.run(mask) == "red, cat, grass"
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "true"
    page.photograph(pictures / f"{mode}-mask-words.png")

    # The other way round: the bars say how much each word looks at a place of the picture.
    page.point(f"{VIEW} .ci-frame")
    shares = page.run(
        f"[...document.querySelectorAll('{VIEW} .ci-word')].map((c) => c.style.getPropertyValue('--share'))"
    )
    assert max(map(float, shares)) == 1
    assert len(set(shares)) > 3

    # The keyboard does it too, and ComfyUI's own shortcuts do not answer.
    nodes = page.run("comfyAPI.app.app.rootGraph.nodes.length")
    page.run(f"document.querySelector('{GRASS}').focus()")
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    page.key("Enter")
    assert pinned(page) == ["red", "cat", "on", "grass"]
    page.key("Escape")
    assert pinned(page) == []
    page.key("ArrowLeft")
    page.key("Enter")
    assert pinned(page) == ["cat"]
    page.run("document.activeElement.blur()")

    # Fewer layers and fewer steps give other maps; the sliders say which.
    for slider in (0, 1):
        before = overlay(page)["data"]
        assert said(page, slider) == "all"
        page.run(f"document.querySelectorAll('{VIEW} .ci-range')[{slider}].querySelectorAll('input')[1].focus()")
        page.key("ArrowLeft")
        assert said(page, slider) not in ("", "all")
        assert overlay(page)["data"] != before
    assert page.run("comfyAPI.app.app.rootGraph.nodes.length") == nodes
    chosen = [said(page, 0), said(page, 1)]
    drawn = overlay(page)["data"]

    # After a reload everything is there again. In the other theme, to see that one as well.
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")  # ComfyUI saves its draft a moment later
    server.ask("/settings", {"Comfy.ColorPalette": "light"})
    page.reload()
    server.wait_until_ready(page)
    name_view(page, SHOW, "attention", VIEW)
    page.wait(f"document.querySelector('{CAT}') && document.querySelector('{VIEW} .ci-frame img').naturalWidth > 0")
    assert pinned(page) == ["cat"]
    assert [said(page, 0), said(page, 1)] == chosen
    assert overlay(page)["data"] == drawn
    page.wait(OUT_OF_SIGHT)
    page.photograph(pictures / f"{mode}-words-light.png")
    # Of the learned word as well, and what it does to its neighbours, on the same graph.
    server.look_at(page, LEARNED)
    page.wait("document.querySelectorAll('.ci-attention .ci-chip').length > 0")
    page.photograph(pictures / f"{mode}-learned-word-light.png")
    verdict = page.run(f"comfyAPI.app.app.rootGraph.getNodeById({DIAGNOSED}).widgets.at(-1).element.textContent")
    assert re.search(r"(should keep|may swallow|is at high risk of swallowing) its prompt: .* SKL \d", verdict)

    # Without the temporary files there is a line instead of a broken picture.
    for path in (server.base / "temp").glob("contextual_inversion_atlas*"):
        path.unlink()
    page.reload()
    server.wait_until_ready(page)
    name_view(page, SHOW, "attention", VIEW)
    page.wait(f"document.querySelector('{VIEW} .ci-message')?.textContent.includes('Queue again')")
    assert page.run(f"document.querySelector('{VIEW} .ci-body').hidden")
    page.photograph(pictures / f"{mode}-gone-light.png")
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_remembered_result_is_shown_in_a_new_page(comfyui_server, pictures, mode):
    """Also where its temporary files were removed: then it is made anew."""
    server = comfyui_server
    served = []
    for gone in (False, False, True):
        if gone:
            for path in (server.base / "temp").glob("contextual_inversion_*"):
                path.unlink()
        page = server.open(nodes_2=MODES[mode], light=True, width=1000, height=1150)
        server.load(page, "see_what_a_word_does", SHOW)
        page.run(
            "(() => { const { rootGraph } = comfyAPI.app.app;"
            f"rootGraph.nodes.filter(({{ id }}) => {LAST_OF_ONE} < id && id <= {LAST})"
            ".forEach((node) => rootGraph.remove(node)); })()"
        )
        shorten(page, 300 + list(MODES).index(mode), {})
        name_view(page, SHOW, "attention", VIEW)
        entry = server.finished(page, server.queue(page))
        assert entry["status"]["status_str"] == "success", entry["status"]
        (remembered,) = (data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
        served.append(str(SHOW) in remembered)
        page.wait(f"document.querySelector('{CAT}') && document.querySelector('{VIEW} .ci-frame img').naturalWidth > 0")
        assert page.run(f"document.querySelector('{VIEW} .ci-message').hidden")
        page.point(CAT)
        page.wait(f"document.querySelector('{VIEW} .ci-tag')")
        assert overlay(page)["shades"] > 20
        page.photograph(pictures / f"{mode}-remembered{'-gone' * gone}.png")
        page.close()
    assert served == [False, True, False]


@pytest.mark.parametrize("mode", MODES)
def test_a_training_is_followed_stopped_and_kept(comfyui_server, pictures, mode):
    server = comfyui_server
    page = server.open(nodes_2=MODES[mode], light=False, width=1000, height=1150)
    server.load(page, "train_a_word", STOPPED)
    shorten(page, 200 + list(MODES).index(mode), {STOPPED: {"steps": 5000, "preview_every": 5}})
    earlier = server.queue(page)
    page.wait("document.querySelector('.ci-training')", 400)
    name_view(page, STOPPED, "training", PANEL)
    page.wait(f"document.querySelector('{PANEL} .ci-chart polyline')", 400)
    page.wait(f"document.querySelectorAll('{PANEL} .ci-strip img').length > 1", 400)

    # A page that was reloaded meanwhile goes on where it was.
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")
    page.reload()
    server.wait_until_ready(page)
    name_view(page, STOPPED, "training", PANEL)
    page.wait(f"document.querySelectorAll('{PANEL} .ci-strip img').length > 1")
    page.wait(f"document.querySelector('{PANEL} .ci-status').textContent.includes(' left')", 400)
    server.look_at(page, STOPPED)
    page.wait(f"document.querySelectorAll('{PANEL} .ci-chart polyline').length > 1", 400)
    page.photograph(pictures / f"{mode}-training.png")

    stop = f"{PANEL} .ci-turner .ci-button"
    assert page.run(f"document.querySelector('{stop}').textContent") == "Stop and keep"
    page.click(stop)
    page.wait(f"document.querySelector('{PANEL} .ci-status').textContent.includes('is kept as it was then')", 400)
    entry = server.finished(page, earlier)
    assert entry["status"]["status_str"] == "success", entry["status"]
    images = [image for output in entry["outputs"].values() for image in output.get("images", ())]
    assert sum(image["type"] == "output" for image in images) == 1, "the nodes behind it ran, the sheet the last"
    assert page.run(f"document.querySelector('{stop}').hidden")

    # What was learned is there after a reload, in the other theme.
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")
    server.ask("/settings", {"Comfy.ColorPalette": "light"})
    page.reload()
    server.wait_until_ready(page)
    name_view(page, STOPPED, "training", PANEL)
    page.wait(f"document.querySelectorAll('{PANEL} .ci-strip img').length > 1")
    assert "is kept as it was then" in page.run(f"document.querySelector('{PANEL} .ci-status').textContent")
    page.photograph(pictures / f"{mode}-trained-light.png")
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()
