"""Drawing a scene: `render(scene)` gives the picture and exact masks of what stands in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backgrounds import paint
from .concepts import CONCEPTS, concept_scenes
from .drawing import FIGURES, HEAD, SUPERSAMPLE, Canvas, crown, hat
from .scenes import IMAGE_SIZE, Scene, SecondObject


@dataclass(frozen=True)
class Masks:
    """Boolean (H, W) masks. `second` is all False where there is no second object."""

    subject: np.ndarray
    second: np.ndarray


def layout(scene: Scene, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Centre and size of the subject in pixels: 82-98 in the middle, 70-76 at a side, less with a hat or a second."""
    jitter = rng.uniform(-3, 3, 2)
    middle = IMAGE_SIZE / 2
    if scene.second is not None:
        shift, size = 25.0, rng.uniform(66, 71)
    elif scene.place == "centre":
        shift, size = 0.0, rng.uniform(82, 98)
    else:
        shift, size = 24.0, rng.uniform(70, 76)
    if scene.worn:
        size = min(size, 84.0) * 0.95
    side = {"left": -1, "centre": 0, "right": 1}[scene.place]
    return (middle + side * shift + jitter[0], middle + (9.0 if scene.worn else 0.0) + jitter[1]), size


def render(scene: Scene) -> tuple[np.ndarray, Masks]:
    """Draw `scene`: uint8 (128, 128, 3) and its masks. Equal scenes give equal pixels.

    Raises KeyError for a shape, colour, background or concept that does not exist, ValueError for an unknown style.
    """
    rng = np.random.default_rng(scene.seed)
    canvas = Canvas(paint(scene.background, rng))
    centre, size = layout(scene, rng)
    second = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    if scene.second is not None:
        side = 1 if scene.place == "left" else -1
        spot = (IMAGE_SIZE / 2 + side * 36.0 + rng.uniform(-2, 2), IMAGE_SIZE / 2 + rng.uniform(6, 16))
        other = CONCEPTS.get(scene.second.concept or "")
        if other is not None:
            look = (other.colour, other.texture, other.second_colour)
            second = canvas.figure(other.parts(), spot, rng.uniform(46, 50), *look)
        else:
            second = canvas.figure(FIGURES[scene.second.shape](), spot, rng.uniform(46, 50), scene.second.colour)
    if scene.concept is not None:
        concept = CONCEPTS[scene.concept]
        subject = canvas.figure(concept.parts(), centre, size, concept.colour, concept.texture, concept.second_colour)
    else:
        parts = FIGURES[scene.subject]()
        if scene.worn:
            x, y = HEAD[scene.subject]
            parts = [*parts, *{"hat": hat, "crown": crown}[scene.worn](x, y)]
        subject = canvas.figure(parts, centre, size, scene.colour, scene.texture, scene.second_colour)
    picture = apply_style(canvas.image.reduce(SUPERSAMPLE), scene.style)
    return np.asarray(picture), Masks(subject, second & ~subject)


def apply_style(picture: Image.Image, style: str) -> Image.Image:
    """Photo: as drawn. Sketch: pale colours under pencil hatching. Pixelated: blocks of 8 x 8."""
    if style == "photo":
        return picture
    if style == "pixelated":
        return picture.resize((IMAGE_SIZE // 8,) * 2, Image.Resampling.BOX).resize(
            picture.size, Image.Resampling.NEAREST
        )
    if style != "sketch":
        raise ValueError(f"unknown style {style!r}")
    pale = 255 - 0.5 * (255 - np.asarray(picture, dtype=np.float64))
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    hatch = 1 - 0.22 * (((x + y) % 12) < 3)
    return Image.fromarray(np.clip(pale * hatch[..., None], 0, 255).astype(np.uint8))


def concept_images(
    name: str, n: int = 4, seed: int = 0, background: str | None = None, companion: SecondObject | None = None
) -> tuple[np.ndarray, list[Masks], str]:
    """Training pictures of a held-out concept: uint8 (n, 128, 128, 3), their masks, and the class word.

    All stand on ONE background, as a user's photographs often do: that is what a learned word may wrongly absorb. So it
    is with a `companion` beside the concept in every picture. Raises KeyError for an unknown name.
    """
    drawn = [render(scene) for scene in concept_scenes(name, n, seed, background, companion)]
    return np.stack([image for image, _ in drawn]), [masks for _, masks in drawn], CONCEPTS[name].super_category
