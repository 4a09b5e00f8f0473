"""Figures as outlines: every shape is a short list of polygons in a unit box (x right, y down, both in -1..1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .scenes import COLOURS

Points = list[tuple[float, float]]
DARK = (34, 26, 34)
SUPERSAMPLE = 4
OUTLINE = 0.055
"""Width of a dark outline relative to the figure's half size."""


@dataclass(frozen=True)
class Polygon:
    """A part of a figure. `fill` is "body" (main colour and texture), "dark" (a detail without outline) or a
    colour name."""

    points: Points
    fill: str = "body"


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, n: int = 40) -> Points:
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return [(cx + rx * float(np.cos(a)), cy + (ry or rx) * float(np.sin(a))) for a in angles]


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def eye(cx: float, cy: float, r: float = 0.11) -> list[Polygon]:
    return [Polygon(ellipse(cx, cy, r), "dark"), Polygon(ellipse(cx - r * 0.3, cy - r * 0.3, r * 0.4), "glint")]


def ball() -> list[Polygon]:
    return [Polygon(ellipse(0, 0, 0.95, n=64))]


def star() -> list[Polygon]:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.46)
    return [Polygon([(float(r * np.cos(a)), float(r * np.sin(a)) + 0.06) for r, a in zip(radii, angles, strict=True)])]


def heart() -> list[Polygon]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3 / 16.5
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15.5
    return [Polygon(list(zip(x.tolist(), (y - 0.12).tolist(), strict=True)))]


def house() -> list[Polygon]:
    return [
        Polygon(box(-0.72, -0.15, 0.72, 0.95)),
        Polygon([(-1.0, -0.12), (0.0, -1.0), (1.0, -0.12)]),
        Polygon(box(-0.2, 0.35, 0.2, 0.95), "dark"),
        Polygon(box(0.34, 0.08, 0.58, 0.34), "glint"),
        Polygon(box(-0.58, 0.08, -0.34, 0.34), "glint"),
    ]


def car() -> list[Polygon]:
    body = [(-1.0, 0.0), (-0.72, -0.06), (-0.45, -0.58), (0.4, -0.58), (0.68, -0.06), (1.0, 0.02), (1.0, 0.46)]
    return [
        Polygon([*body, (-1.0, 0.46)]),
        Polygon([(-0.5, -0.08), (-0.34, -0.44), (-0.05, -0.44), (-0.05, -0.08)], "glint"),
        Polygon([(0.08, -0.08), (0.08, -0.44), (0.32, -0.44), (0.46, -0.08)], "glint"),
        Polygon(ellipse(-0.52, 0.46, 0.27), "dark"),
        Polygon(ellipse(0.52, 0.46, 0.27), "dark"),
        Polygon(ellipse(-0.52, 0.46, 0.1), "glint"),
        Polygon(ellipse(0.52, 0.46, 0.1), "glint"),
    ]


def _ring(cx: float, cy: float, outer: float, inner: float) -> Points:
    """A thick open arc to the right of (cx, cy): a handle."""
    a = np.linspace(-np.pi / 2, np.pi / 2, 20)
    out = [(cx + outer * float(np.cos(t)), cy + outer * float(np.sin(t))) for t in a]
    return out + [(cx + inner * float(np.cos(t)), cy + inner * float(np.sin(t))) for t in a[::-1]]


def cup() -> list[Polygon]:
    return [
        Polygon(_ring(0.4, 0.0, 0.56, 0.3)),
        Polygon([(-0.9, -0.72), (0.5, -0.72), (0.38, 0.82), (-0.78, 0.82)]),
        Polygon(ellipse(-0.2, -0.72, 0.7, 0.17), "dark"),
    ]


def fish() -> list[Polygon]:
    return [
        Polygon([(0.42, 0.0), (1.02, -0.62), (0.86, 0.0), (1.02, 0.62)]),
        Polygon([(-0.3, -0.4), (0.05, -0.86), (0.35, -0.3)]),
        Polygon(ellipse(-0.2, 0.0, 0.8, 0.56)),
        *eye(-0.6, -0.12, 0.12),
        Polygon([(-0.98, 0.14), (-0.62, 0.2), (-0.66, 0.27), (-0.94, 0.24)], "dark"),
    ]


def cat() -> list[Polygon]:
    return [
        Polygon([(-0.84, 0.1), (-0.86, -1.0), (-0.16, -0.52)]),
        Polygon([(0.84, 0.1), (0.86, -1.0), (0.16, -0.52)]),
        Polygon(ellipse(0, 0.18, 0.92, 0.76)),
        *eye(-0.36, 0.06, 0.14),
        *eye(0.36, 0.06, 0.14),
        Polygon([(-0.12, 0.34), (0.12, 0.34), (0.0, 0.5)], "dark"),
        Polygon(box(-0.24, 0.58, 0.24, 0.64), "dark"),
    ]


def bird() -> list[Polygon]:
    """A duck seen from the side, looking left."""
    return [
        Polygon([(-0.74, -0.52), (-1.04, -0.34), (-0.7, -0.26)], "orange"),
        Polygon([(0.4, 0.1), (1.04, -0.34), (0.86, 0.4)]),
        Polygon(ellipse(0.12, 0.34, 0.8, 0.5)),
        Polygon(ellipse(-0.38, -0.46, 0.42, 0.42)),
        Polygon([(-0.66, 0.2), (-0.7, -0.4), (-0.06, -0.4), (0.1, 0.1)]),
        Polygon(ellipse(0.3, 0.3, 0.36, 0.2), "line"),
        *eye(-0.5, -0.54, 0.1),
    ]


def butterfly() -> list[Polygon]:
    def wing(s: int) -> list[Polygon]:
        upper = [(0.0, 0.05), (s * 0.3, -0.75), (s * 0.85, -0.95), (s * 1.03, -0.55), (s * 0.8, -0.02)]
        lower = [(0.0, 0.0), (s * 0.72, 0.05), (s * 0.86, 0.45), (s * 0.55, 0.88), (s * 0.22, 0.7)]
        return [Polygon(upper), Polygon(lower)]

    return [*wing(-1), *wing(1), Polygon(ellipse(0, 0.0, 0.11, 0.74), "dark"), Polygon(ellipse(0, -0.66, 0.17), "dark")]


FIGURES: dict[str, Callable[[], list[Polygon]]] = {
    f.__name__: f for f in (ball, star, heart, house, car, cup, fish, cat, bird, butterfly)
}

HEAD: dict[str, tuple[float, float]] = {
    "ball": (0.0, -0.88),
    "star": (0.0, -0.78),
    "heart": (0.0, -0.68),
    "house": (0.0, -0.8),
    "car": (0.0, -0.56),
    "cup": (-0.2, -0.7),
    "fish": (-0.25, -0.5),
    "cat": (0.0, -0.5),
    "bird": (-0.38, -0.8),
    "butterfly": (0.0, -0.74),
}
"""Where a hat or crown stands, in the shape's unit box."""


def hat(x: float, y: float) -> list[Polygon]:
    return [
        Polygon(box(x - 0.28, y - 0.5, x + 0.28, y), "hat"),
        Polygon(box(x - 0.5, y - 0.08, x + 0.5, y + 0.08), "hat"),
    ]


def crown(x: float, y: float) -> list[Polygon]:
    teeth = [(-0.42, -0.46), (-0.21, -0.2), (0.0, -0.5), (0.21, -0.2), (0.42, -0.46), (0.42, 0.06), (-0.42, 0.06)]
    return [Polygon([(x + dx, y + dy) for dx, dy in teeth], "gold")]


FILLS: dict[str, tuple[int, int, int]] = {
    **COLOURS,
    "dark": DARK,
    "glint": (236, 240, 246),
    "hat": (60, 60, 72),
    "gold": (255, 205, 40),
}


class Canvas:
    """A supersampled picture onto which figures are drawn, with an exact mask of each."""

    def __init__(self, background: Image.Image) -> None:
        self.image = background
        self.draw = ImageDraw.Draw(background)

    def figure(
        self,
        parts: list[Polygon],
        centre: tuple[float, float],
        size: float,
        colour: str,
        texture: str | Image.Image = "plain",
        second_colour: str = "white",
    ) -> np.ndarray:
        """Draw `parts` at `centre` with half width `size / 2` (final pixels); returns its mask (H, W).

        `texture` is one of `scenes.TEXTURES`, or a mask ("L", the canvas's size) of where the second colour goes.
        """
        half, scale = size / 2, SUPERSAMPLE
        width = max(1, round(OUTLINE * half * scale))

        def place(points: Points) -> Points:
            return [((centre[0] + x * half) * scale, (centre[1] + y * half) * scale) for x, y in points]

        mask = Image.new("L", self.image.size)
        body = Image.new("L", self.image.size)
        on_mask, on_body = ImageDraw.Draw(mask), ImageDraw.Draw(body)
        polygons = [(place(p.points), p.fill) for p in parts]
        for points, fill in polygons:
            if fill == "line":
                continue
            on_mask.polygon(points, fill=255)
            if fill != "glint":
                on_mask.line([*points, points[0], points[1]], fill=255, width=2 * width, joint="curve")
            if fill == "body":
                on_body.polygon(points, fill=255)
        self.image.paste(DARK, mask=mask)
        self.image.paste(FILLS[colour], mask=body)
        if texture != "plain":
            pattern = texture_mask(texture, self.image.size, place) if isinstance(texture, str) else texture
            self.image.paste(FILLS[second_colour], mask=ImageChops.multiply(pattern, body))
        for points, fill in polygons:
            if fill == "body":
                continue
            if fill == "line":
                self.draw.line([*points, points[0]], fill=DARK, width=width, joint="curve")
                continue
            if fill not in ("dark", "glint"):
                self.draw.line([*points, points[0], points[1]], fill=DARK, width=2 * width, joint="curve")
            self.draw.polygon(points, fill=FILLS[fill])
        return np.asarray(mask.reduce(SUPERSAMPLE)) >= 128


def nearest(image: np.ndarray, fills: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Which of `fills` each pixel of `image` (H, W, 3) is nearest to, as their index, (H, W)."""
    return np.square(image[..., None, :].astype(float) - np.array(fills, float)).sum(-1).argmin(-1)


def texture_mask(texture: str, size: tuple[int, int], place: Callable[[Points], Points]) -> Image.Image:
    """Where the second colour goes: stripes, spots or the lower half. Raises ValueError for an unknown texture."""
    pattern = Image.new("L", size)
    draw = ImageDraw.Draw(pattern)
    if texture == "striped":
        for y in np.arange(-1.2, 1.2, 0.58):
            draw.polygon(place(box(-1.2, y, 1.2, y + 0.26)), fill=255)
    elif texture == "spotted":
        for row, y in enumerate(np.arange(-0.9, 1.1, 0.46)):
            for x in np.arange(-1.2, 1.2, 0.56):
                draw.polygon(place(ellipse(x + (0.28 if row % 2 else 0.0), y, 0.15, n=20)), fill=255)
    elif texture == "two-tone":
        draw.polygon(place(box(-1.3, 0.12, 1.3, 1.3)), fill=255)
    else:
        raise ValueError(f"unknown texture {texture!r}")
    return pattern
