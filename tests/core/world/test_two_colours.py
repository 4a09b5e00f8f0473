"""Two colours on a figure: renders say what they are, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contextual_inversion.core.world.render import render
from contextual_inversion.core.world.scenes import SHAPES, Scene
from contextual_inversion.core.world.two_colours import LAID, laid_out


def drawn(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    image, masks = render(scene)
    return image, masks.subject


SCENES = [
    Scene(shape, "purple", texture, "yellow", background="snow", seed=index)
    for index, shape in enumerate(SHAPES)
    for texture in LAID
]


def test_renders_are_what_their_scenes_say() -> None:
    found = [laid_out(*drawn(scene), "purple", "yellow") for scene in SCENES]
    assert np.mean([a == b.texture for a, b in zip(found, SCENES, strict=True)]) >= 0.95
    # Where it is not sure, it names no other texture.
    assert all(a in (None, b.texture) for a, b in zip(found, SCENES, strict=True))


@pytest.mark.parametrize("texture", LAID)
def test_the_order_of_the_colours_counts(texture: str) -> None:
    scene = Scene("ball", "green", texture, "white", seed=4)
    assert laid_out(*drawn(scene), "green", "white") == texture
    # Stripes the other way round are stripes, as far as their widths fit.
    assert laid_out(*drawn(scene), "white", "green") in ((None, "striped") if texture == "striped" else (None,))


def test_other_colours_and_single_ones_are_none() -> None:
    scene = Scene("heart", "red", "striped", "blue", seed=2)
    assert laid_out(*drawn(scene), "red", "pink") is None
    assert laid_out(*drawn(replace(scene, texture="plain")), "red", "blue") is None
    assert laid_out(np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), bool), "red", "blue") is None
    with pytest.raises(KeyError):
        laid_out(*drawn(scene), "red", "brown")
