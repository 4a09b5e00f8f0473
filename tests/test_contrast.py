"""Labels can be read: on the colours of nodes in the shipped graphs, and in our views on those nodes (WCAG AA)."""

import colorsys
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
AA, PARTS = 4.5, 3.0
"""The least contrast of text, and of parts such as sockets (WCAG 2.2, 1.4.3 and 1.4.11)."""
THEMES = {
    "dark": {"titles": ("#999", "#a0a0a0"), "labels": ("#aaa", "#a0a0a0"), "text": "#ddd", "input": "#222"},
    "light": {"titles": ("#222", "#444"), "labels": ("#444", "#444"), "text": "#222", "input": "#c9c9c9"},
}
"""What ComfyUI's front end 1.49.6 writes with, in the classic canvas and in Nodes 2.0."""
GROUNDS = {"dark": ("#353535", "#262729", "#141414"), "light": ("#f5f5f5", "#ffffff", "#d3d3d3")}
"""What sockets and links lie on: a node in either canvas, and what is around nodes."""
KNOWN = {
    "dark": "#FFD500 #A8DADC #FFA931 #64B5F6 #FF9CF9 #81C784 #B39DDB #FF6E6E #9A9A9A",
    "light": "#FFA726 #5C6BC0 #EF5350 #42A5F5 #AB47BC #9CCC65 #7E57C2 #FF7043 #4CAF50",
}
"""ComfyUI's own colours of sockets and links."""
# Machado, Oliveira and Fernandes 2009: what people without one kind of cone see of linear RGB.
SIGHT = {
    "common": np.eye(3),
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
}
APART = {"common": 0.15, "no green": 0.1, "no red": 0.1}
"""Least distances in Oklab."""


def rgb(colour: str) -> np.ndarray:
    """#rgb or #rrggbb as three numbers in [0, 1]."""
    digits = colour.removeprefix("#")
    pairs = [2 * digit for digit in digits] if len(digits) == 3 else re.findall("..", digits)
    return np.array([int(pair, 16) / 255 for pair in pairs])


def linear(colour: np.ndarray) -> np.ndarray:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def shown(colour: str, theme: str) -> np.ndarray:
    """A node's colour as the page shows it: in light themes with half of all lightness added."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*rgb(colour))
    added = 0.5 if theme == "light" else 0
    return np.array(colorsys.hls_to_rgb(hue, min(1, lightness + added), saturation))


def node_colours(key: str) -> set[str]:
    """Every colour that a node of a shipped graph has as its `color` or `bgcolor`, also inside subgraphs."""
    found = set()
    for path in (REPOSITORY / "workflows").glob("*.json"):
        graph = json.loads(path.read_text(encoding="utf-8"))
        graphs = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
        found |= {node[key] for one in graphs for node in one["nodes"] if key in node}
    return found


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("key", "written"), [("color", "titles"), ("bgcolor", "labels")])
def test_titles_and_labels_can_be_read_on_every_node(theme, key, written):
    found = node_colours(key)
    assert len(found) >= 3
    low = {
        (colour, text): contrast(rgb(text), shown(colour, theme))
        for colour in found
        for text in THEMES[theme][written]
        if contrast(rgb(text), shown(colour, theme)) < AA
    }
    assert low == {}


@pytest.mark.parametrize("theme", THEMES)
def test_a_views_quiet_text_can_be_read_on_every_node(theme):
    css = (REPOSITORY / "js" / "style.css").read_text(encoding="utf-8")
    (percent,) = re.findall(r"--ci-quiet: color-mix\(in srgb, var\(--ci-text\) (\d+)%, transparent\)", css)
    text, part = rgb(THEMES[theme]["text"]), int(percent) / 100
    nodes = [shown(colour, theme) for colour in node_colours("bgcolor")]
    for ground in (*nodes, *map(rgb, GROUNDS[theme][:2]), rgb(THEMES[theme]["input"])):
        assert contrast(text, ground) >= AA
        assert contrast(part * text + (1 - part) * ground, ground) >= AA


def socket_colours(theme: str) -> dict[str, np.ndarray]:
    """Our sockets' colours, as js/sockets.js has them."""
    source = (REPOSITORY / "js" / "sockets.js").read_text(encoding="utf-8")
    return {name: rgb(colour) for name, colour in re.findall(rf'([A-Z_]+): {{.*?{theme}: "(#\w+)"', source)}


def oklab(colour: np.ndarray, sight: str) -> np.ndarray:
    """As people of a kind of sight see it, in Ottosson's Oklab."""
    seen = np.clip(np.array(SIGHT[sight]) @ linear(colour), 0, 1)
    cones = np.cbrt(np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.63]]) @ seen)
    return np.array([[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]) @ cones


@pytest.mark.parametrize("theme", THEMES)
def test_sockets_are_seen_and_told_apart(theme):
    ours = socket_colours(theme)
    assert len(ours) == 5
    assert all(contrast(one, rgb(ground)) >= PARTS for one in ours.values() for ground in GROUNDS[theme])
    for sight, least in APART.items():
        seen = [oklab(one, sight) for one in ours.values()]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) >= least
    known = [oklab(rgb(one), "common") for one in KNOWN[theme].split()]
    assert min(np.linalg.norm(oklab(one, "common") - other) for one in ours.values() for other in known) >= 0.1
