"""What a training looks like while it runs: the latest sample and the loss curves as one picture on the node.

A picture needs no front end of our own, so it shows in every client that shows a sampler's progress.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

SIDE = 256
CHART_HEIGHT = 96
MARGIN = 6
BACKGROUND, FRAME = (24, 26, 30), (62, 66, 74)
COLOURS = ((250, 178, 60), (96, 190, 255), (150, 220, 130), (232, 128, 200))
SMOOTHING = 0.9


def live_picture(sample: torch.Tensor | None, losses: Mapping[str, Sequence[float]], total_steps: int) -> Image.Image:
    """The sample (H, W, 3) in [0, 1], if there is one, above the curves of every loss (one value a step)."""
    top = 0 if sample is None else SIDE
    picture = Image.new("RGB", (SIDE, top + CHART_HEIGHT), BACKGROUND)
    if sample is not None:
        pixels = (sample.clamp(0, 1).numpy() * 255).round().astype(np.uint8)
        picture.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(picture)
    curves = {name: values for name, values in losses.items() if any(map(math.isfinite, values))}
    for (name, values), colour, row in zip(curves.items(), COLOURS, range(len(COLOURS)), strict=False):
        _draw_curve(draw, values, total_steps, top, colour)
        _draw_label(draw, name, values, top + MARGIN + 12 * row, colour)
    draw.rectangle((0, top, SIDE - 1, top + CHART_HEIGHT - 1), outline=FRAME)
    return picture


def smoothed(values: Sequence[float], decay: float = SMOOTHING) -> list[float]:
    """Running average, without the pull towards 0 that a plain one has at its start; values not finite repeat it."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average, weight = decay * average + (1 - decay) * value, decay * weight + (1 - decay)
        result.append(average / weight if weight else math.nan)
    return result


def _draw_curve(
    draw: ImageDraw.ImageDraw, values: Sequence[float], total_steps: int, top: int, colour: tuple[int, int, int]
) -> None:
    # Each curve fills the height: only its shape can be compared, the numbers are written beside its name.
    finite = [(step, value) for step, value in enumerate(smoothed(values)) if math.isfinite(value)]
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    width, height = SIDE - 2 * MARGIN, CHART_HEIGHT - 2 * MARGIN
    points = [
        (
            MARGIN + width * step / max(1, total_steps - 1),
            top + MARGIN + height * (1 - (value - low) / ((high - low) or 1)),
        )
        for step, value in finite
    ]
    if len(points) > 1:
        draw.line(points, fill=colour, width=2, joint="curve")


def _draw_label(
    draw: ImageDraw.ImageDraw, name: str, values: Sequence[float], y: int, colour: tuple[int, int, int]
) -> None:
    text = f"{name} {smoothed(values)[-1]:.3g}"
    font = ImageFont.load_default(10)
    x = SIDE - MARGIN - draw.textlength(text, font=font)
    draw.rectangle((x - 2, y, SIDE - MARGIN, y + 11), fill=BACKGROUND)
    draw.text((x, y), text, font=font, fill=colour)
