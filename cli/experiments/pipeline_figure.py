"""The figures of pipelines as a picture: which does both how often, and what it obeys and shows by itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.files.atomic import atomic_write_verified
from .pipeline_tables import in_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .trials import Arm

WIDTH, ROW, AROUND = 9.5, 0.27, 1.1
"""Inches: of the picture, of each pipeline's line, and of title and axis."""
DPI = 110
BOTH, OBEYS, SHOWS = "#1b4f72", "#2e86c1", "#d35400"
"""Colours that are told apart in every kind of sight."""


def write_figure(arms: Sequence[Arm], trials: Sequence[Mapping[str, Any]], path: Path) -> None:
    """`pipelines_figure` as a PNG at `path`, in place of an older one. Raises OSError."""
    made = io.BytesIO()
    pipelines_figure(arms, trials).savefig(made, format="png", metadata={"Software": None})
    atomic_write_verified(path, made.getvalue(), if_exists="replace")


def pipelines_figure(arms: Sequence[Arm], trials: Sequence[Mapping[str, Any]]) -> Figure:
    """A line for each pipeline, in the order of the leading table: on the left the share of pictures that show the
    subject and obey, with its 95 % interval, on the right what they obey and what they show. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = in_order(arms, trials)
    figure = Figure(figsize=(WIDTH, AROUND + ROW * len(rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    lines = range(len(rows))
    values = [row.both.value for row in rows]
    ends = [[row.both.value - row.both.low for row in rows], [row.both.high - row.both.value for row in rows]]
    left.errorbar(values, lines, xerr=ends, fmt="o", color=BOTH, ecolor="#7f8c8d", elinewidth=1.5, markersize=5)
    left.set_title("shows the subject and obeys the prompt", fontsize=10)
    left.set_yticks(lines, [row.label for row in rows], fontsize=8)
    obeyed, shown = ([row.means[key] for row in rows] for key in ("fidelity", "recognised"))
    right.hlines(lines, shown, obeyed, color="#d5d8dc", linewidth=2)
    right.plot(obeyed, lines, "s", color=OBEYS, markersize=5, label="prompt fidelity")
    right.plot(shown, lines, "D", color=SHOWS, markersize=5, label="subject recognised")
    right.set_title("each by itself", fontsize=10)
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    for axis in (left, right):
        axis.set_xlim(-0.01, 1.01)
        axis.grid(axis="x", color="#ecf0f1")
        axis.set_axisbelow(True)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    left.invert_yaxis()
    return figure
