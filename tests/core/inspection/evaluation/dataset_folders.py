"""A small dataset in the protocol's folders: two subjects, two prompts, three pictures of each."""

from pathlib import Path

import numpy as np
from PIL import Image

PROMPTS = "# place\na {} in the snow\n\n# style\na drawing of a {}\n"


def write(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def make_dataset(root: Path, draw_picture) -> Path:
    """`root`/dataset, `root`/generated and `root`/masks; returns `root`."""
    (root / "dataset").mkdir(parents=True)
    (root / "dataset" / "classes.txt").write_text("# two\nrex, dog, animate\nmug, coffee mug, inanimate\n")
    (root / "generated").mkdir()
    (root / "generated" / "prompts.txt").write_text(PROMPTS)
    for number, subject in enumerate(("rex", "mug")):
        for index in range(2):
            seed = 100 * number + index
            write(root / "dataset" / subject / f"{index:02d}.png", draw_picture(seed, 36, 40))
            write(root / "masks" / subject / "references" / f"{index:02d}.png", disc(36, 40))
        for prompt in range(2):
            for index in range(3):
                seed = 1000 + 100 * number + 10 * prompt + index
                write(root / "generated" / subject / f"{prompt:02d}" / f"{index}.png", draw_picture(seed))
                write(root / "masks" / subject / f"{prompt:02d}" / f"{index}.png", disc(40, 40, 8 + index))
    return root


def disc(height: int, width: int, radius: int = 12) -> np.ndarray:
    """White inside a circle, black outside."""
    y, x = np.mgrid[:height, :width]
    return (((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2) * 255).astype(np.uint8)
