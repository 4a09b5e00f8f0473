"""`contextual-inversion world-report`: how well the bundled tiny model obeys its prompts."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

SHOWN, COLUMNS = 40, 8
"""Pictures on the sheet, and in a row of it."""
PER_CONCEPT = 16
"""Of so many captions, one more prompt describes each concept."""
BESIDE = ("judge_on_renders", "shuffled_floor")


def main(
    n: int = 200, seed: int = 0, steps: int = 0, sheet: Path | None = Path("out/world-report.png")
) -> dict[str, Any]:
    """Draw N held-out captions with the bundled model and check every picture against its caption; half as many with
    two colours, which have to lie as it says; and the ten held-out concepts, described in words.

    Args:
        n: Captions.
        seed: Of the captions and of the sampler's noise.
        steps: Of the sampler; 0: as many as trials have.
        sheet: Where to put a picture of the first ones, or nothing.
    """
    from ...core.inspection.contact_sheet import captioned_sheet
    from ...core.inspection.world.checks import default_judge
    from ...core.inspection.world.describing import described, two_colours
    from ...core.inspection.world.report import KEYS, questions, seeds_of, tiny_autoencode, world_report
    from ...core.inspection.world.world_evaluation import draw
    from ...core.models.diffusers_adapter import DiffusersModel
    from ...core.models.tiny import load_tiny
    from ...core.models.tiny.config import SAMPLING
    from ..places import require_file, write_picture
    from .tables import table_figure

    if n < 1 or seed < 0 or steps < 0:
        raise ValueError(f"--n is at least 1, --seed and --steps at least 0, not {n}, {seed} and {steps}")
    steps = steps or SAMPLING["steps"]
    if sheet is not None:
        require_file(sheet, "--sheet")
    tiny = load_tiny()
    model = DiffusersModel.from_tiny(tiny)
    started = time.perf_counter()
    drawn: list[Any] = []

    def sampler(texts: list[str], seed: int) -> Any:
        drawn.append(draw(model, texts, seeds_of(seed, len(texts)), steps=steps))
        return drawn[-1]

    judge, autoencode = default_judge(), tiny_autoencode(tiny)
    report = world_report(sampler, n=n, seed=seed, autoencode=autoencode, judge=judge)
    report["two_colours"] = two_colours(sampler, judge, max(1, n // 2), seed, autoencode)
    report["described"] = described(sampler, judge, seed, max(1, n // PER_CONCEPT))
    report["steps"] = steps
    report["seconds"] = time.perf_counter() - started
    print(f"{'':<16}{'model':>8}{'renders':>9}{'shuffled':>10}")
    for key in KEYS:
        # A few captions may ask for no second object and no style.
        found = (table_figure(part.get(key, math.nan)) for part in (report, *(report[name] for name in BESIDE)))
        print(f"{key:<16}" + "".join(f"{figure:>{width}}" for figure, width in zip(found, (8, 9, 10), strict=True)))
    laid, words = report["two_colours"], report["described"]
    print(f"{'two colours':<16}{table_figure(laid['right']):>8}{table_figure(laid['on_renders']):>9}")
    print(
        f"{'described':<16}{table_figure(words['worded']):>8}  looks and place; as the concept: {words['composed']:.3f}"
    )
    if sheet is not None:
        captions = [question.text for question in questions(n, seed)][:SHOWN]
        title = f"first {len(captions)} of {n} held-out captions"
        write_picture(captioned_sheet(list(drawn[0][: len(captions)]), captions, COLUMNS, title=title), sheet)
        print(f"pictures: {sheet}")
    return report
