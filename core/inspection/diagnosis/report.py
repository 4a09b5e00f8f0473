"""A diagnosis for people: a Markdown table and a plot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .diagnose import Diagnosis, SubjectFigures
from .verdict import verdicts

MEASURES = {
    "sim1": "sim1: speaks for the context (lower is better)",
    "sim2": "sim2: context means what it meant (higher is better)",
    "skl_normalised": "SKL, pixel-normalised: looks elsewhere than the context (higher is better)",
}
COLOURS = ((196, 78, 82), (76, 114, 176), (140, 140, 140))
"""Of the concept, the other concept and the class word."""
INK, FAINT, GRID, PAPER = (28, 28, 32), (110, 110, 118), (226, 226, 230), (255, 255, 255)
WIDTH, BAR, MARGIN = 960, 22, 28


def markdown(diagnosis: Diagnosis) -> str:
    """Means, each prompt, norms and neighbours as Markdown."""
    measures = [key for key in ("sim1", "sim2", "skl", "skl_normalised") if key in diagnosis.subjects[0].means]
    heads = {"skl": "SKL", "skl_normalised": "SKL (pixels sum to 1)"}
    lines = [f"# {diagnosis.name} ({diagnosis.class_word})", ""]
    lines += _row(["mean over prompts", *(heads.get(key, key) for key in measures)], header=True)
    for subject in diagnosis.subjects:
        lines += _row([subject.label, *(_number(subject.means[key]) for key in measures)])
    lines += ["", "A word that composes has a low sim1, a high sim2 and a high SKL (METHODS.md 2.7).", ""]
    lines += [line for verdict in verdicts(diagnosis) for line in (f"Verdict: {verdict.text}", "")]
    lines += _row(["prompt", "context word", "subject", *(heads.get(key, key) for key in measures)], header=True)
    for number, prompt in enumerate(diagnosis.subjects[0].prompts):
        for subject in diagnosis.subjects:
            values = [_number(getattr(subject.prompts[number], key)) for key in measures]
            lines += _row([prompt.prompt, prompt.word, subject.label, *values])
    lines += ["", *_row(["vector", "encoder", "norm", "longer than", "nearest words (cosine)"], header=True)]
    for subject in diagnosis.subjects:
        for one in subject.embeddings:
            near = ", ".join(f"{word} {value:.2f}" for word, value in one.nearest)
            lines += _row([subject.label, one.encoder, f"{one.norm:.3f}", f"{one.shorter:.0%} of words", near])
    for name, norms in diagnosis.vocabulary.items():
        low, high = norms["percentile_5"], norms["percentile_95"]
        lines += [
            "",
            f"Norms in the vocabulary of {name}: mean {norms['mean']:.3f}, 90 % between {low:.3f} and {high:.3f}.",
        ]
    return "\n".join(lines) + "\n"


def plot(diagnosis: Diagnosis) -> np.ndarray:
    """Bars of the measures, and under them CoRe's figure 2: uint8 (H, 960, 3)."""
    shown = [key for key in MEASURES if key in diagnosis.subjects[0].means]
    # The class word is the reference of the cosines: 1 by definition.
    compared = [subject for subject in diagnosis.subjects if subject.embeddings]
    tokens = [name for name, _ in compared[0].cosines]
    block = len(diagnosis.subjects) * BAR + 44
    panel = 220
    image = Image.new("RGB", (WIDTH, 96 + len(shown) * block + panel + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    title, normal, small = (ImageFont.load_default(size) for size in (22, 15, 13))
    draw.text((MARGIN, 18), f"{diagnosis.name} ({diagnosis.class_word})", INK, title)
    draw.text((MARGIN, 48), f"means over {len(diagnosis.subjects[0].prompts)} prompts", FAINT, small)
    top = 80
    for key in shown:
        draw.text((MARGIN, top), MEASURES[key], INK, normal)
        _bars(draw, top + 24, [(s.label, s.means[key]) for s in diagnosis.subjects], diagnosis.subjects, small)
        top += block
    draw.text((MARGIN, top), "cosine of each token's output with the same prompt of the class word", INK, normal)
    draw.text((MARGIN, top + 20), f'"{diagnosis.subjects[0].prompts[0].prompt}"', FAINT, small)
    _columns(draw, top + 52, panel - 80, tokens, compared, diagnosis.subjects, small)
    return np.asarray(image)


def _bars(
    draw: ImageDraw.ImageDraw,
    top: int,
    rows: Sequence[tuple[str, float]],
    subjects: Sequence[SubjectFigures],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, right = 260, WIDTH - 90
    low, high = min(0.0, *(value for _, value in rows)), max(1e-9, *(value for _, value in rows))
    zero = left + (right - left) * -low / (high - low)
    for number, (label, value) in enumerate(rows):
        y = top + number * BAR
        draw.text((MARGIN, y + 2), label, INK, font)
        end = left + (right - left) * (value - low) / (high - low)
        draw.rectangle((min(zero, end), y + 2, max(zero, end), y + BAR - 4), _colour(subjects, label))
        draw.text((max(zero, end) + 6, y + 2), _number(value), INK, font)


def _columns(
    draw: ImageDraw.ImageDraw,
    top: int,
    height: int,
    tokens: Sequence[str],
    compared: Sequence[SubjectFigures],
    subjects: Sequence[SubjectFigures],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    low = min(0.0, *(value for subject in compared for _, value in subject.cosines))
    left, step = 70, (WIDTH - 70 - MARGIN) / len(tokens)
    for mark in (0.0, 0.5, 1.0):
        y = top + height * (1 - (mark - low) / (1 - low))
        draw.line((left, y, WIDTH - MARGIN, y), GRID)
        draw.text((MARGIN, y - 8), f"{mark:.1f}", FAINT, font)
    base = top + height * (1 + low / (1 - low))
    width = (step - 8) / len(compared)
    for place, token in enumerate(tokens):
        for number, subject in enumerate(compared):
            x = left + place * step + 4 + number * width
            y = top + height * (1 - (subject.cosines[place][1] - low) / (1 - low))
            draw.rectangle((x, min(y, base), x + width - 2, max(y, base)), _colour(subjects, subject.label))
        draw.text((left + place * step + step / 2, top + height + 6), token, INK, font, anchor="ma")


def _colour(subjects: Sequence[SubjectFigures], label: str) -> tuple[int, int, int]:
    number = [subject.label for subject in subjects].index(label)
    return COLOURS[2] if number == len(subjects) - 1 else COLOURS[number]


def _row(cells: Sequence[str], header: bool = False) -> list[str]:
    line = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return [line, "|" + " --- |" * len(cells)] if header else [line]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
