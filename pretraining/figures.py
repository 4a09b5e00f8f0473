"""Pictures for docs/tiny_model.md: `python -m contextual_inversion.pretraining.figures --out docs/world --logs DIR`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..core.inspection.world.report import tiny_autoencode
from ..core.inspection.world.world_evaluation import draw
from ..core.models.diffusers_adapter import DiffusersModel
from ..core.models.tiny import load_tiny
from ..core.world.captions import caption
from ..core.world.concepts import CONCEPTS
from ..core.world.render import concept_images, render
from ..core.world.scenes import IMAGE_SIZE, Scene
from .pictures import scene

PROMPTS = (
    "a photo of a red ball on the grass",
    "a blue car in the snow",
    "a yellow star in the night sky",
    "a pink cat on a wooden table",
    "a green fish in the water",
    "a white house on the sand",
    "an orange bird in front of a brick wall",
    "a purple butterfly on lava",
    "a red and white striped fish in the sea",
    "a blue bird with yellow spots in a meadow",
    "a sketch of a purple cat in the desert",
    "pixel art of a green car on a beach",
    "a green cat next to a yellow ball on the grass",
    "a pink cup beside a blue star in the snow",
    "a yellow house with a crown at night",
    "a red heart against a brick wall",
)


def sheet(images: list[np.ndarray], titles: list[str], columns: int) -> Image.Image:
    """Pictures in rows with a short title under each."""
    line = 38
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (IMAGE_SIZE + 4), rows * (IMAGE_SIZE + line)), "white")
    draw = ImageDraw.Draw(page)
    for i, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = i % columns * (IMAGE_SIZE + 4), i // columns * (IMAGE_SIZE + line)
        page.paste(Image.fromarray(image), (x, y))
        words, lines = title.split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) > 22:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        draw.text((x + 2, y + IMAGE_SIZE), "\n".join(lines[:3]), fill="black", spacing=0, font_size=10)
    return page


def curves(logs: Path, path: Path) -> None:
    """Loss curves of every stage that left a log. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = {
        "vae": ("psnr", "object_psnr"),
        "encoders": ("loss", "top1_of_128"),
        "unet": ("val_caption", "val_empty"),
        "judge": ("loss",),
    }
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.2), constrained_layout=True)
    for axis, (stage, keys) in zip(axes, wanted.items(), strict=True):
        file = logs / f"{stage}.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in lines if key in entry]
            axis.plot(*zip(*points, strict=True) if points else ([], []), label=key.replace("_", " "))
        axis.set(title=stage, xlabel="step")
        axis.legend()
    figure.savefig(path, dpi=80)


def main(arguments: list[str] | None = None) -> None:
    """Write world.png, concepts.png, reconstructions.png, samples.png and curves.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, default=None, help="folder of the training's *.jsonl files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shown = [scene("test", i) for i in range(16)]
    drawn = [render(s)[0] for s in shown]
    sheet(drawn, [caption(s, rng) for s in shown], 8).save(options.out / "world.png")
    pictures, titles = [], []
    for name, concept in CONCEPTS.items():
        pictures += [concept_images(name, 1)[0][0], render(Scene(concept.subject, background="water", seed=1))[0]]
        titles += [f"{name} ({concept.super_category})", "elsewhere"]
    sheet(pictures, titles, 10).save(options.out / "concepts.png")
    model = load_tiny()
    decoded = list(tiny_autoencode(model)(np.stack(drawn[:8])))
    sheet(drawn[:8] + decoded, ["render"] * 8 + ["through the VAE"] * 8, 8).save(options.out / "reconstructions.png")
    sampled = list(draw(DiffusersModel.from_tiny(model), PROMPTS, range(len(PROMPTS))))
    sheet(sampled, list(PROMPTS), 8).save(options.out / "samples.png")
    if options.logs:
        curves(options.logs, options.out / "curves.png")


if __name__ == "__main__":
    main()
