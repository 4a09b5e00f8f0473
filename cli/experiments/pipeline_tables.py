"""The table that the part `pipelines` of `claims` begins with, and the documents that it is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .paper_tables import provenance
from .tables import table_header, table_row

if TYPE_CHECKING:
    from ...core.maths.statistics import Interval
    from .trials import Arm

PART, LEADING = "pipelines", "leaders"
SORTED_BY = "composed"
COLUMNS = ("fidelity", "recognised", "similarity")


@dataclass(frozen=True)
class Reached:
    """What one pipeline reached: the share of pictures that do both with its interval, its other means by `COLUMNS`,
    the steps of both stages, and seconds."""

    label: str
    both: Interval
    means: Mapping[str, float]
    steps: str
    seconds: float


def leading_table(arms: Sequence[Arm], trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every pipeline with its means, those first whose pictures most often show the subject and obey."""
    lines = table_header(
        "method",
        "recognised and obeyed (95 % interval)",
        "prompt fidelity",
        "subject recognised",
        "subject similarity",
        "steps",
        "processor seconds",
    )
    for row in in_order(arms, trials):
        shown = f"**{row.both.value:.3f}** ({row.both.low:.3f} to {row.both.high:.3f})"
        means = (f"{mean:.3f}" for mean in row.means.values())
        lines.append(table_row(row.label, shown, *means, row.steps, f"{row.seconds:.1f}"))
    return lines


def in_order(arms: Sequence[Arm], trials: Sequence[Mapping[str, Any]]) -> list[Reached]:
    """What every pipeline reached, those first whose pictures most often show the subject and obey."""
    return sorted((reached(trials, arm) for arm in arms), key=lambda row: -row.both.value)


def reached(trials: Sequence[Mapping[str, Any]], arm: Arm) -> Reached:
    """What `arm` reached in its own trials."""
    from ...core.maths.statistics import Interval, paired_bootstrap

    own = [trial for trial in trials if trial["method"] == arm.name]
    values = [trial[SORTED_BY] for trial in own]
    groups = [trial["concept"] for trial in own]
    both = Interval(values[0], values[0], values[0])
    if len(own) > 1:
        both = paired_bootstrap(values, [0.0] * len(own), groups=groups)
    means = {key: sum(trial[key] for trial in own) / len(own) for key in COLUMNS}
    steps = " + ".join(str(own[0][key]) for key in ("steps", "second_steps") if own[0][key])
    return Reached(arm.label, both, means, steps, sum(trial["seconds"] for trial in own) / len(own))


def pipelines_table(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The leading table out of stored results, for the documents that begin with it: of the leaders, or of all
    pipelines where those were not run; empty where there are none."""
    from .trials import Arm

    part = LEADING if parts.get(LEADING, {}).get("trials") else PART
    trials = parts.get(part, {}).get("trials", [])
    arms = [Arm(name, label) for name, label in labels(trials).items()]
    return [*leading_table(arms, trials), *provenance(parts, [part])] if trials else []


def labels(trials: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What the methods of stored trials are called, as they came."""
    return {trial["method"]: trial["label"] for trial in trials}
