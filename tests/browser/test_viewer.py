"""The viewer alone in a page: what it keeps, what it takes up again, and what it says when files are gone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from contextual_inversion.core.inspection.attention.atlas import atlas, description
from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
from contextual_inversion.core.prompts.words import PromptWord

WORDS = ["a", "red", "castle", "on", "grass"]
SIDE = 8
PAGE = """<!doctype html><meta charset="utf-8"><body style="width:400px;height:600px">
<script type="module">
import { AttentionViewer } from "./js/attention/viewer.js";
import { addStyle } from "./js/elements.js";
addStyle(new URL("./js/style.css", location.href));
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


SIZES = """{ ...report, images: 1, size: "8 x 8", groups: ["8 x 8", "4 x 4"].map((size, depth) =>
    ({ ...report.groups[0], label: `${size}, up`, size, depth })) }"""
"""The maps of the two images as those of one, in layers of two sizes."""


def test_the_size_that_the_node_shows_comes_first_and_another_is_kept(page):
    page.run(f"make(null, {SIZES})")
    options = "[...viewer.size.options].map((option) => option.value)"
    assert page.run(options) == ["8 x 8", "4 x 4", "all"]
    page.point(chip("castle"))
    assert strongest(page) == peaks(0)[WORDS.index("castle")]
    assert page.run("viewer.layers.element.hidden"), "one layer is nothing to choose from"
    page.run("viewer.size.value = '4 x 4'; viewer.size.dispatchEvent(new Event('change'))")
    assert page.run("window.kept.size") == "4 x 4"
    assert strongest(page) == peaks(1)[WORDS.index("castle")]
    page.run(f"make(window.kept, {SIZES})")
    assert page.run("viewer.size.value") == "4 x 4"
    page.run("viewer.size.value = 'all'; viewer.size.dispatchEvent(new Event('change'))")
    assert not page.run("viewer.layers.element.hidden")
    assert page.run("viewer.layers.element.querySelector('output').textContent") == "all"
    # A size that the next picture does not have is not asked for in vain.
    page.run(f"make({{ size: '5 x 5' }}, {SIZES})")
    assert page.run("viewer.size.value") == "8 x 8"
    page.run("make(null, report)")
    assert page.run("viewer.size.hidden")


def sdxl_layers() -> list[str]:
    """The 70 cross-attention layers of SDXL in forward order."""
    blocks = [("down_blocks.1", 2, 2), ("down_blocks.2", 2, 10), ("mid_block", 1, 10)]
    blocks += [("up_blocks.0", 3, 10), ("up_blocks.1", 3, 2)]
    return [
        f"{block}.attentions.{i}.transformer_blocks.{j}.attn2"
        for block, attentions, depth in blocks
        for i in range(attentions)
        for j in range(depth)
    ]


def test_a_wide_picture_of_sdxl(page, static, pictures):
    """832 x 1216 pixels: 70 layers in two sizes, neither of them square; the last word's map is a spot at the left."""
    _, folder = static
    layers = sdxl_layers()
    assert len(layers) == 70
    recorder = AttentionRecorder(bins=2)
    recorder.begin(layers)
    for index, name in enumerate(layers):
        height, width = (52, 76) if name.startswith(("down_blocks.1", "up_blocks.1")) else (26, 38)
        maps = torch.full((1, len(WORDS) + 1, height, width), 1e-3)
        maps[0, -1, height // 4, width // 8] = 0.5
        for stretch in range(2):
            recorder.add("prompt", index, stretch, maps)
    recorder.finish()
    found = recorder.maps()
    words = [PromptWord(text, "word", (place + 1,)) for place, text in enumerate(WORDS)]
    sheet = atlas(found, words)
    Image.fromarray(sheet.pixels.numpy()).save(folder / "sdxl.png")
    Image.new("RGB", (1216, 832), (70, 90, 110)).save(folder / "wide.png")
    file = {"subfolder": "", "type": "temp"}
    told = description(found, words, sheet, " ".join(WORDS), found.layers_of(side=16))
    told |= {"atlas": {"filename": "sdxl.png", **file}, "pictures": [{"filename": "wide.png", **file}]}
    page.run(f"make(null, {json.dumps(told)})")
    page.wait("document.querySelector('.ci-frame img').naturalWidth > 0")
    assert page.run("[...viewer.size.options].map((option) => option.value)") == ["18 x 26", "13 x 19", "all"]
    assert page.run("viewer.size.value") == "13 x 19"
    box = page.run("(() => { const b = viewer.frame.getBoundingClientRect(); return b.width / b.height; })()")
    assert box == pytest.approx(1216 / 832, rel=0.01)
    page.point(chip("grass"))
    page.wait("document.querySelector('.ci-tag')")
    left, top = page.run(
        "(({ style }) => [parseFloat(style.left), parseFloat(style.top)])(document.querySelector('.ci-peak'))"
    )
    assert (left, top) == (pytest.approx(100 / 8, abs=3), pytest.approx(100 / 4, abs=4))
    # Every block has a place on the slider and a name of its own.
    page.run("viewer.size.value = 'all'; viewer.size.dispatchEvent(new Event('change'))")
    said = page.run(
        "(() => { const ends = viewer.layers.element.querySelectorAll('input'); const texts = [];"
        "for (let at = 0; at <= Number(ends[0].max); at++) { for (const end of ends) end.value = at;"
        "ends[0].dispatchEvent(new Event('input'));"
        "texts.push(viewer.layers.element.querySelector('output').textContent); } return texts; })()"
    )
    assert len(said) == len(set(said)) == 11
    assert said[:3] == ["18 x 26, down 1", "18 x 26, down 2", "13 x 19, down 1"]
    assert said[-1] == "18 x 26, up 3"
    page.photograph(pictures / "sdxl-wide.png")


def test_pinned_words_become_the_mask_by_one_click(page):
    button = "document.querySelector('.ci-buttons').children[3]"
    assert page.run(f"[{button}.textContent, {button}.hidden]") == ["Use as mask", True], "there is no such input"
    page.run(
        "(window.given = { value: '' },"
        "viewer.maskWords = { get: () => given.value, set: (text) => (given.value = text) }, viewer.refresh())"
    )
    assert page.run(f"[{button}.hidden, {button}.disabled]") == [False, True], "nothing is pinned"
    page.click(chip("grass"))
    page.click(chip("red"))
    page.point_at(1, 1)
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "false"
    page.run(f"{button}.focus()")
    page.key("Enter")
    assert page.run("given.value") == "red, grass"
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "true"
    page.click(chip("red"))
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "false", "it says what the input says"
    page.run("(given.value = null, viewer.refresh())")
    assert page.run(f"{button}.disabled"), "a link gives it"


def test_the_keyboard_reaches_everything_and_is_seen(page):
    page.run("viewer.maskWords = { get: () => '', set: () => {} }")
    page.click(chip("red"))
    reached = []
    page.run("document.activeElement.blur()")
    for _ in range(12):
        page.key("Tab")
        here = page.run("[document.activeElement.textContent, document.activeElement.matches(':focus-visible')]")
        if page.run("document.activeElement === document.body") or here[0] in reached:
            break
        reached.append(here[0])
        assert here[1]
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", here
    assert {"Same scale", "Use as mask", "Clear", "›"} <= set(reached)


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
