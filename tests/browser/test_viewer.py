"""The viewer alone in a page: what it keeps, what it takes up again, and what it says when files are gone."""

import json

import numpy as np
import pytest
from PIL import Image

WORDS = ["a", "red", "castle", "on", "grass"]
SIDE = 8
PAGE = """<!doctype html><meta charset="utf-8"><body style="width:400px;height:600px">
<script type="module">
import { AttentionViewer } from "./js/attention/viewer.js";
import { addStyle } from "./js/elements.js";
addStyle();
window.report = await (await fetch("report.json")).json();
window.make = async (kept, report) => {
  window.kept = undefined;
  window.viewer?.element.remove();
  const keep = (state) => (window.kept = structuredClone(state));
  window.viewer = new AttentionViewer({ address: (file) => file.filename, keep });
  document.body.append(viewer.element);
  viewer.restore(kept);
  await viewer.show(report);
};
window.ready = true;
</script>"""


def peaks(image: int) -> list[tuple[int, int]]:
    """The cell (row, column) at which each word's map has its only peak."""
    random = np.random.default_rng(image)
    return [tuple(random.integers(0, SIDE, 2).tolist()) for _ in WORDS]


@pytest.fixture(scope="module")
def page(browser, static):
    address, folder = static
    tiles = np.zeros((2, len(WORDS), SIDE, SIDE), np.uint8)
    for image in range(2):
        for word, (row, column) in enumerate(peaks(image)):
            tiles[image, word, row, column] = 255
    Image.fromarray(tiles.reshape(-1, SIDE)).save(folder / "atlas.png")
    Image.new("RGB", (64, 64), (128, 128, 128)).save(folder / "picture.png")
    report = {
        "version": 1,
        "prompt": " ".join(WORDS),
        "words": [{"text": text, "kind": "word", "positions": [i + 1]} for i, text in enumerate(WORDS)],
        "groups": [{"label": "8 x 8, down", "depth": 0.0, "height": SIDE, "width": SIDE}],
        "bins": [{"from": 0.0, "to": 1.0}],
        "atlas": {"filename": "atlas.png", "subfolder": "", "type": "temp"},
        "tile": {"height": SIDE, "width": SIDE, "columns": 1},
        "scale": [0.5] * (2 * len(WORDS)),
        "pictures": [{"filename": "picture.png", "subfolder": "", "type": "temp"}] * 2,
        "images": 2,
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "viewer.html").write_text(PAGE)
    page = browser()
    page.size(500, 700)
    page.open(f"{address}/viewer.html")
    page.wait("window.ready")
    yield page
    assert page.errors == []


@pytest.fixture(autouse=True)
def viewer(page):
    page.run("make(null, report)")
    page.wait("document.querySelector('.ci-frame img').naturalWidth > 0")
    page.point_at(1, 1)


def chip(word: str) -> str:
    return f".ci-chip:nth-child({WORDS.index(word) + 1})"


def pinned(page) -> list[str]:
    return page.run("[...document.querySelectorAll('.ci-chip[aria-selected=true]')].map((chip) => chip.textContent)")


def strongest(page) -> tuple[int, int]:
    """The cell that the overlay colours most."""
    data, width, height = page.run(
        "(() => { const c = document.querySelector('.ci-frame canvas');"
        "const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "return [[...data].filter((_, i) => i % 4 === 0), c.width, c.height]; })()"
    )
    row, column = np.unravel_index(np.argmax(np.reshape(data, (height, width))), (height, width))
    return int(row * SIDE / height), int(column * SIDE / width)


@pytest.mark.parametrize("image", [0, 1])
def test_a_word_lights_up_where_its_map_is(page, image):
    if image:
        page.click("[aria-label='Image after']")
    for word, place in zip(WORDS, peaks(image), strict=True):
        page.point(chip(word))
        assert strongest(page) == place, word


def test_a_map_goes_from_its_weakest_to_its_strongest_cell(page):
    """However much a word looks everywhere: what it adds to that is what is seen."""
    scaled = "[...viewer.scaled(1, 8, 8)]"
    plain = page.run(scaled)
    assert (min(plain), max(plain)) == (0, 1)
    page.run("viewer.atlas.map(1, viewer.choice()).data.forEach((value, i, all) => (all[i] = value / 3 + 0.2))")
    assert page.run(scaled) == pytest.approx(plain, abs=1e-5)
    page.run("viewer.common.click()")
    assert min(page.run(scaled)) > 0.1, "on the common scale it is shown as it is"


def test_a_choice_is_kept_and_taken_up_again(page):
    page.click(chip("castle"))
    page.click(chip("grass"))
    page.click(chip("castle"))
    page.click(chip("red"))
    page.run("viewer.common.click()")
    kept = page.run("window.kept")
    assert pinned(page) == ["red", "grass"]
    page.run(f"make({json.dumps(kept)}, report)")
    assert pinned(page) == ["red", "grass"]
    assert page.run("viewer.common.getAttribute('aria-pressed')") == "true"
    assert json.loads(json.dumps(kept)) == kept
    assert "png" not in json.dumps(kept), "a choice has no files in it"


def test_one_chip_is_in_the_tab_order_and_keys_walk(page):
    assert page.run("[...document.querySelectorAll('.ci-chip')].map((chip) => chip.tabIndex)") == [0, -1, -1, -1, -1]
    page.run("document.querySelector('.ci-chip').focus()")
    for key, word in (("ArrowRight", "red"), ("End", "grass"), ("ArrowRight", "a"), ("ArrowLeft", "grass")):
        page.key(key)
        assert page.run("document.activeElement.textContent") == word
    page.key("Enter")
    page.key("Home")
    page.key("Enter")
    assert pinned(page) == ["a", "grass"]
    page.key("Escape")
    assert pinned(page) == page.run("window.kept.pins") == []


def test_missing_files_are_said(page):
    page.run("make(null, { ...report, atlas: { filename: 'gone.png' } })")
    assert "Queue again" in page.run("document.querySelector('.ci-message').textContent")
    assert page.run("document.querySelector('.ci-body').hidden")
    page.run("make(null, { ...report, version: 2 })")
    assert "another version" in page.run("document.querySelector('.ci-message').textContent")
    page.run("make(null, { ...report, pictures: [{ filename: 'gone.png' }] })")
    page.wait("document.querySelector('.ci-frame img').hidden")
    page.point(chip("castle"))
    assert strongest(page) == peaks(0)[WORDS.index("castle")], "the maps are still worth seeing"
