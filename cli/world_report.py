"""`contextual-inversion world-report`: how well the bundled tiny model obeys its prompts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

SHOWN, COLUMNS = 40, 8
"""Pictures on the sheet, and in a row of it."""
SEEDS = 100_000
"""Room for one picture's seed each between one report's seed and the next."""


def main(n: int = 200, seed: int = 0, sheet: Path | None = Path("out/world-report.png")) -> dict[str, Any]:
    """Draw N held-out captions with the bundled model and check every picture against its caption.

    Args:
        n: Captions.
        seed: Of the captions and of the sampler's noise.
        sheet: Where to put a picture of the first ones, or nothing.
    """
    from ..core.inspection.contact_sheet import Row, contact_sheet
    from ..core.inspection.world_evaluation import draw
    from ..core.models.diffusers_adapter import DiffusersModel
    from ..core.models.tiny import load_tiny
    from ..core.world.report import KEYS, questions, tiny_autoencode, world_report

    tiny = load_tiny()
    model = DiffusersModel.from_tiny(tiny)
    started = time.perf_counter()
    drawn: list[Any] = []

    def sampler(texts: list[str], seed: int) -> Any:
        drawn.append(draw(model, texts, range(SEEDS * seed, SEEDS * seed + len(texts))))
        return drawn[-1]

    report = world_report(sampler, n=n, seed=seed, autoencode=tiny_autoencode(tiny))
    report["seconds"] = time.perf_counter() - started
    print(f"{'':<16}{'model':>8}{'renders':>9}{'shuffled':>10}")
    for key in KEYS:
        print(
            f"{key:<16}{report[key]:>8.3f}{report['judge_on_renders'][key]:>9.3f}{report['shuffled_floor'][key]:>10.3f}"
        )
    if sheet is not None:
        captions = [question.text for question in questions(n, seed)][:SHOWN]
        rows = [
            Row("", list(drawn[0][i : i + COLUMNS]), captions=captions[i : i + COLUMNS])
            for i in range(0, len(captions), COLUMNS)
        ]
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(rows, title=f"first {len(captions)} of {n} held-out captions", label_width=8).save(sheet)
        print(f"pictures: {sheet}")
    return report
