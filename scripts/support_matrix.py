"""What each node does on each family of models beyond Stable Diffusion, as the tests of this repository show it.

    python scripts/support_matrix.py          # runs those tests and writes docs/models.md and README.md
    python scripts/support_matrix.py --quick  # writes what they say they show, without running them

A test that takes `loader` or `sockets` (tests/comfy/conftest.py) is run for one family after another; its mark
`@pytest.mark.supports(row, says="yes")` says which cell it shows. What no test shows is "untried". A test compares both
tables with the marks (tests/comfy/test_support_matrix.py), and with every test passing, those are what was shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests" / "comfy"
MARK = "mark.supports("
UNTRIED, PROTOCOL = "untried", "behind the protocol"
ROWS = (
    "TrainConcept: textual inversion",
    "TrainConcept: word and LoRA together",
    "TrainConcept: DreamBooth as a LoRA",
    "TrainConcept: XTI, Custom Diffusion, all weights",
    "RefineConcept: LoRA",
    "RefineConcept: all weights",
    "CoReRegularizer: embedding loss",
    "CoReRegularizer: attention loss",
    "PretrainContextualizer, MLMRegularizer",
    "OptimizeForPrompt",
    "DiagnoseConcept",
    "ApplyConcept, SaveConcept, LoadConcept, stock LoRA loader",
    "stock `embedding:name`",
    "RecordAttention, ShowAttention",
    "ShowAttention: words of a chosen text encoder",
    "AttendImage",
    "DualPath",
    "PredictConcept, TunePredictedConcept, PretrainTuningEncoder",
)
SUMMARY = {
    "Words and LoRAs": ROWS[:3],
    "CoRe": ROWS[6:8],
    "MLM": ROWS[8:9],
    "Repair, diagnosis, second stage": ("RefineConcept: LoRA", "OptimizeForPrompt", "DiagnoseConcept"),
    "Heat maps": ("RecordAttention, ShowAttention", "AttendImage"),
    "Dual path": ("DualPath",),
}
"""The columns of README's table, and the rows that each sums up."""
STABLE_DIFFUSION = "SD 1.x, SD 2.x, SDXL, the demo model"

Shown = Mapping[tuple[str, str], str]
"""By row and family, what stands in that cell."""


def shown_by(cells: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """The cells of the marks `cells` (row, family, says). What was run in a graph counts more than what was run behind
    the protocol. Raises ValueError for an unknown row, and where two tests say different things."""
    found: dict[tuple[str, str], str] = {}
    for cell in cells:
        if cell["row"] not in ROWS:
            raise ValueError(f"{cell['test']}: docs/models.md has no row {cell['row']!r}; they are ROWS of {__file__}")
        place, says = (cell["row"], cell["family"]), cell["says"]
        before = found.get(place, PROTOCOL)
        if PROTOCOL not in (before, says) and before != says:
            raise ValueError(f"{cell['test']}: {' / '.join(place)} is {says!r} here and {before!r} in another test")
        found[place] = before if says == PROTOCOL else says
    return found


def matrix(shown: Shown, families: Sequence[str]) -> str:
    """The table of docs/models.md."""
    lines = [f"| | {' | '.join(families)} |", f"| --- |{' --- |' * len(families)}"]
    lines += [f"| {row} | {' | '.join(shown.get((row, one), UNTRIED) for one in families)} |" for row in ROWS]
    return "\n".join(lines)


def summary(shown: Shown, families: Sequence[str]) -> str:
    """The table of README.md: families of which the same can be said share a line."""
    lines = [f"| Family | {' | '.join(SUMMARY)} |", f"| --- |{' --- |' * len(SUMMARY)}"]
    lines.append(f"| {STABLE_DIFFUSION} |{' yes |' * len(SUMMARY)}")
    alike: dict[tuple[str, ...], list[str]] = {}
    for family in families:
        said = tuple(_summed([shown.get((row, family), UNTRIED) for row in rows]) for rows in SUMMARY.values())
        alike.setdefault(said, []).append(family)
    lines += [f"| {', '.join(names)} | {' | '.join(said)} |" for said, names in alike.items()]
    return "\n".join(lines)


def _summed(cells: Sequence[str]) -> str:
    if len(set(cells)) == 1:
        return {PROTOCOL: UNTRIED, "refused": "no"}.get(cells[0], cells[0])
    return "partly" if any(cell in ("yes", "refused") for cell in cells) else UNTRIED


TABLES = {"docs/models.md": matrix, "README.md": summary}


def with_table(text: str, table: str) -> str:
    """`text` with `table` in place of the one that stands between its marks. Raises ValueError without marks."""
    begin, end = "<!-- support: begin -->", "<!-- support: end -->"
    before, found, rest = text.partition(begin)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise ValueError(f"{begin} and {end} belong around the table")
    return f"{before}{begin}\n{table}\n{end}{after}"


def marked_tests() -> list[str]:
    """The files that hold such tests."""
    return sorted(str(path) for path in TESTS.glob("test_*.py") if MARK in path.read_text(encoding="utf-8"))


def told_by_tests(*options: str) -> dict[str, object]:
    """What tests/comfy/conftest.py writes of a run of those tests: `families`, and `cells`, one for each mark and
    family. Raises SystemExit with the tests' own output where one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "support.json"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "supports", *options, *marked_tests()]
        told = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, "SUPPORT_MATRIX": str(place)}, capture_output=True, text=True
        )
        if told.returncode:
            raise SystemExit(f"{told.stdout[-4000:]}{told.stderr[-2000:]}\nnothing is written")
        return json.loads(place.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="do not run the tests, only ask what they say they show")
    told = told_by_tests(*(["--collect-only"] if parser.parse_args().quick else []))
    shown = shown_by(told["cells"])
    for name, table in TABLES.items():
        path = REPOSITORY / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), table(shown, told["families"])), encoding="utf-8")


if __name__ == "__main__":
    main()
