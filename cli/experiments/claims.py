"""`contextual-inversion claims`: the papers' claims on ConceptWorld, every method paired with another by concept and
seed."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.files.atomic import make_folder
from .paper_tables import Parts, gathered, papers_table, provenance, reports_in
from .pipeline_figure import write_figure
from .pipeline_tables import pipelines_table
from .resuming import COSTS, done_of, end_of, kept, published, take_up, unfinished, weights_digest
from .tables import (
    DECIDING,
    MEASURES,
    has_tables,
    is_clear,
    require_marks,
    rewrite_in_one,
    rewrite_tables,
    table_figure,
    table_header,
    table_row,
)

if TYPE_CHECKING:
    from ...core.models.diffusers_adapter import DiffusersModel
    from .trials import Arm, Comparison

DEVELOPMENT = ("crested-bird", "goblet", "comet", "teapot", "fire-engine", "parrot")
"""Concepts on which rates, steps and weights were chosen; never among those that are judged."""


def main(
    parts: tuple[str, ...] = ("core",),
    folder: Path = Path("out/claims"),
    concepts: tuple[str, ...] = (),
    seeds: int = 3,
    workers: int = 1,
    markdown: tuple[Path, ...] = (),
    results: Path = Path("docs/claims"),
    hours: float = 0.0,
    figures: Path | None = None,
    json: Path | None = None,
) -> dict[str, Any]:
    """Train every concept with every seed by every method, judge the pictures, and compare pair by pair.

    A cell that is done is kept in FOLDER, under the model's fingerprint, and not done again, so an interrupted run goes
    on where it was. On another machine it goes on from what was published of the same model, in `--json FILE` and in
    RESULTS; a run that is interrupted or out of time publishes what it has, marked "complete": false.

    Args:
        parts: Which comparisons; an unknown one is answered with a list of all.
        folder: Where each trial's figures are kept.
        concepts: Held-out concepts; if none are named, all that were not used for development.
        seeds: Seeds 1..N of each concept.
        workers: Processes that train at the same time, one thread each.
        markdown: Documents in which the tables of each part, between its two marks, are written anew; so are those
            that compare with the papers, from RESULTS and this run. With `--parts` and nothing behind it they alone.
        results: Folder with the JSON files of other runs.
        hours: After so many no new trial is begun; 0: no end.
        figures: Folder for a picture NAME.png of each part that compares pipelines.
    """
    from tqdm import tqdm

    from ...core.world import concepts as world
    from .claim_parts import PARTS, every_part

    offered = every_part()
    unknown = [name for name in parts if name not in offered]
    unknown += [name for name in concepts if name not in world.CONCEPTS]
    if unknown or seeds < 1 or workers < 1:
        print(f"parts: {', '.join(offered)}")
        raise ValueError(
            f"parts are {', '.join(PARTS)}, with-, method- and recipe-NAME, concepts {', '.join(world.CONCEPTS)}; "
            f"at least one seed and one worker. Unknown: {', '.join(unknown) or 'none'}"
        )
    until = end_of(hours)
    require_marks(markdown, parts)
    if figures:
        make_folder(figures)
    report: dict[str, Any] = {"commit": commit(), "development_concepts": DEVELOPMENT, "parts": {}}
    if not parts:
        write_summaries(markdown, gathered(results, report))
        return report
    model = _loaded()
    report |= {"model": model.fingerprint, "weights": weights_digest()}
    folder = folder / model.fingerprint
    earlier = published(reports_in(results), report["model"], report["weights"])
    own = published([json] if json else [], report["model"], report["weights"])
    # What this very file was planned by stays its plan.
    take_up(folder, own, [COSTS], replace=True)
    names = concepts or tuple(name for name in world.CONCEPTS if name not in DEVELOPMENT)
    made = [offered[name](model) for name in parts]
    chosen = [part.prepared(model, folder, results) if part.prepared else part for part in made]
    # Seed after seed, so that what is there of an unfinished run covers all concepts.
    cells = {
        cell_name(part, arm, name, seed): (part.trial, arm, name, seed)
        for seed in range(1, seeds + 1)
        for name in names
        for part in chosen
        for arm in part.arms
    }
    take_up(folder, earlier | own, cells)
    running = tqdm(run_cells(cells, folder, workers, until), total=len(cells), desc="trials", unit="trial")
    done, stop = done_of(running, cells, folder)
    for part in chosen:
        trials = [
            {**done[cell], **named(arm, done[cell]), "cell": cell}
            for arm in part.arms
            for name in names
            for seed in range(1, seeds + 1)
            if (cell := cell_name(part, arm, name, seed)) in done
        ]
        report["parts"][part.name] = {"trials": trials, "comparisons": [], **part.facts}
    if stop is not None or len(done) < len(cells):
        return unfinished(report, (len(done), len(cells)), stop, json)
    for part in chosen:
        found = report["parts"][part.name]
        found["comparisons"] = compare(found["trials"], part.pairs)
        lines = as_markdown(part, found) + provenance({part.name: {**report, **found}}, [part.name])
        print("\n".join(lines))
        if markdown:
            rewrite_in_one(markdown, part.name, lines)
        if figures and part.leads is not None:
            write_figure(part.arms, found["trials"], figures / f"{part.name}.png")
    write_summaries(markdown, gathered(results, report))
    return report


def named(arm: Arm, figures: Mapping[str, Any]) -> dict[str, str]:
    """What a trial is called, which another part or an earlier record may have made under other names."""
    called = {"method": arm.name, "label": arm.label}
    return {key: name for key, name in called.items() if key in figures}


@cache
def commit() -> str | None:
    """The commit of the clone that this code runs from, with "+" where files differ from it; None outside a clone."""
    here = str(Path(__file__).resolve().parent)
    call = ["git", "-C", here, "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cell_name(part: Comparison, arm: Arm, name: str, seed: int) -> str:
    """Where a trial is kept: parts that train the same way share it."""

    from .trials import arm_key, run_trial

    kind = "" if part.trial is run_trial else f"{part.trial.__name__}-"
    return f"{kind}{arm_key(arm)}-{name}-{seed}"


Cell = tuple[Callable[..., Any], Any, str, int]
"""The trial of a part, its arm, the concept and the seed."""


@cache
def _loaded() -> DiffusersModel:
    """The model, once a process."""

    from .trials import demo_model

    return demo_model()


def _prepare() -> None:
    import torch

    torch.set_num_threads(1)


def _one(key: str, cell: Cell, folder: Path) -> dict[str, Any]:
    """One cell, which remembers the commit it was made at."""

    from .trials import cached_trial

    trial, arm, name, seed = cell
    return cached_trial(folder, key, lambda: {**trial(_loaded(), arm, name, seed).figures, "commit": commit()})


def run_cells(
    cells: Mapping[str, Cell], folder: Path, workers: int, until: float = math.inf
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell's figures under its key, from FOLDER or made now, `workers` at a time, as they are done. After `until`
    on the clock of `time.monotonic` none is begun that is not in FOLDER."""
    wanted = ((key, cell) for key, cell in cells.items() if kept(folder, key) or time.monotonic() < until)
    if workers == 1:
        for key, cell in wanted:
            yield key, _one(key, cell, folder)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare) as pool:
        running: dict[Future[dict[str, Any]], str] = {}
        try:
            # One by one, since what a pool has been handed it begins.
            for key, cell in wanted:
                running[pool.submit(_one, key, cell, folder)] = key
                if len(running) == workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _finished(running: dict[Future[dict[str, Any]], str]) -> list[tuple[str, dict[str, Any]]]:
    """The results of those that are done first, which are taken out of `running`."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    return [(running.pop(job), job.result()) for job in done]


def compare(
    trials: Sequence[dict[str, Any]], pairs: Sequence[tuple[str, str]], measures: Iterable[str] = tuple(MEASURES)
) -> list[dict[str, Any]]:
    """For each pair of methods and each measure: both means and the paired difference with its 95 % bootstrap interval,
    concepts drawn before seeds (`core.maths.statistics`). A measure that a trial lacks (or NaN) is left out."""
    from ...core.maths.statistics import paired_bootstrap

    found = {(t["method"], t["concept"], t["seed"]): t for t in trials}
    cells = sorted({(concept, seed) for _, concept, seed in found})
    rows = []
    for treated, control in pairs:
        for measure in measures:
            ours = [found[(treated, *cell)].get(measure, math.nan) for cell in cells]
            theirs = [found[(control, *cell)].get(measure, math.nan) for cell in cells]
            if len(cells) < 2 or any(map(math.isnan, [*ours, *theirs])):
                continue
            gain = paired_bootstrap(ours, theirs, groups=[concept for concept, _ in cells])
            rows.append(
                {
                    "method": treated,
                    "control": control,
                    "measure": measure,
                    "control_mean": sum(theirs) / len(theirs),
                    "mean": sum(ours) / len(ours),
                    "difference": gain.value,
                    "low": gain.low,
                    "high": gain.high,
                    "pairs": len(cells),
                }
            )
    return rows


def as_markdown(part: Comparison, found: dict[str, Any]) -> list[str]:
    """What each method reached, every comparison, and every trial, as tables."""
    labels = {arm.name: arm.label for arm in part.arms}
    trials, rows = found["trials"], found["comparisons"]
    # A part may ask for some things never: they are NaN everywhere.
    shown = [key for key in MEASURES if not all(math.isnan(trial.get(key, math.nan)) for trial in trials)]
    lines = [] if part.leads is None else [*part.leads(part.arms, trials), ""]
    lines += table_header("method", *(MEASURES[key] for key in shown))
    for name, label in labels.items():
        own = [trial for trial in trials if trial["method"] == name]
        means = [sum(trial[key] for trial in own) / len(own) for key in shown]
        lines.append(table_row(label, *map(table_figure, means)))
    if part.more is not None:
        lines += ["", *part.more(part.arms, trials)]
    lines += pairs_tables(labels, part.pairs, rows)
    lines += ["", "<details><summary>Every trial</summary>", ""]
    lines += table_header("method", "concept", "seed", *(MEASURES[key] for key in shown))
    for trial in trials:
        values = (table_figure(trial[key]) for key in shown)
        lines.append(table_row(labels[trial["method"]], trial["concept"], str(trial["seed"]), *values))
    return [*lines, "", "</details>"]


def pairs_tables(
    labels: Mapping[str, str], pairs: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The pairs at a glance, in the measures that decide, then each of them in all; nothing where none is compared."""
    found = {(row["method"], row["control"], row["measure"]): row for row in rows}
    there = [pair for pair in pairs if any((*pair, key) in found for key in MEASURES)]
    if not there:
        return []
    decide = [key for key in DECIDING if all((*pair, key) in found for pair in there)]
    lines = [
        "",
        *table_header("difference (95 % interval), bold if clear", *(MEASURES[key] for key in decide)),
    ]
    for treated, control in there:
        gains = [as_gain(found[treated, control, key], clear=True) for key in decide]
        lines.append(table_row(f"{labels[treated]} against {labels[control]}", *gains))
    lines += ["", "<details><summary>Every measure of every pair</summary>"]
    for treated, control in there:
        those = [found[treated, control, key] for key in MEASURES if (treated, control, key) in found]
        lines += ["", f"**{labels[treated]} against {labels[control]}**, {those[0]['pairs']} pairs", ""]
        lines += table_header("measure", labels[control], labels[treated], "difference (95 % interval)")
        for row in those:
            means = (f"{row['control_mean']:.3f}", f"{row['mean']:.3f}")
            lines.append(table_row(MEASURES[row["measure"]], *means, as_gain(row)))
    return [*lines, "", "</details>"]


def as_gain(row: Mapping[str, Any], clear: bool = False) -> str:
    """A paired difference with its interval; with `clear` in bold where it is."""
    gain = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    return f"**{gain}**" if clear and is_clear(row) else gain


SUMMARIES = {"papers": papers_table, "pipeline-figures": pipelines_table}
"""Tables that are made of several parts' results, by the name in their marks."""


def write_summaries(documents: Sequence[Path], parts: Parts) -> None:
    """Every summary anew in each document that has its marks."""
    for name, table in SUMMARIES.items():
        for path in documents:
            if has_tables(path, name):
                rewrite_tables(path, name, table(parts))
