"""What an evaluation came to: means over subjects with intervals, as JSON data and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...maths.statistics import paired_bootstrap
from .run import CellResult
from .scores import MEASURES

TEXT_MEASURE = "clip_t"
"""The one measure that every prompt counts for."""


def summarise(
    results: Sequence[CellResult], facts: Mapping[str, Any], skip_categories: Sequence[str] = ()
) -> dict[str, Any]:
    """The report as plain data.

    `measures`: per measure the mean over subjects of each subject's mean over pictures (METHODS.md 2.7), and where
    there are at least two subjects its 95 % bootstrap interval over subjects. `subjects`, `categories` and `prompts`
    hold the means of their pictures. Pictures of `skip_categories` count for CLIP-T alone (METHODS.md 1.9).

    Raises ValueError where nothing was measured.
    """
    counted = [result for result in results if result.pictures]
    if not counted:
        raise ValueError("there is nothing to report: no picture was measured")
    subjects = _grouped(counted, lambda result: result.cell.subject.name, skip_categories)
    sizes = {len(result.pictures) for result in results}
    return {
        "measures": _over_subjects(subjects),
        "subjects": subjects,
        "categories": _grouped(counted, lambda result: result.cell.prompt.category or "all", ()),
        "prompts": _grouped(counted, lambda result: result.cell.prompt.template, ()),
        "protocol": {
            **facts,
            "subjects": len(subjects),
            "prompts_per_subject": max(sum(r.cell.subject.name == name for r in results) for name in subjects),
            "pictures_per_prompt": min(sizes) if len(sizes) == 1 else [min(sizes), max(sizes)],
            "pictures": sum(len(result.pictures) for result in counted),
            "similarity_without": list(skip_categories),
        },
        "skipped": list(dict.fromkeys(note for result in results for note in result.skipped)),
    }


def measure_means(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Per measure the mean over pictures that could be measured; a measure without any is left out."""
    means = {key: float(np.nanmean(values)) for key, values in scores.items() if not np.isnan(values).all()}
    return {key: means[key] for key in MEASURES if key in means}


def markdown_table(rows: Mapping[str, Mapping[str, Any]], head: str, footer: Mapping[str, Any] | None = None) -> str:
    """`rows` (name -> measure -> number) as a Markdown table with four digits; absent measures have no column."""
    keys = [key for key in MEASURES if any(key in values for values in rows.values())]
    lines = [f"| {head} | {' | '.join(MEASURES[key] for key in keys)} |", f"| --- |{' ---: |' * len(keys)}"]
    both = [*rows.items(), *([("**mean**", footer)] if footer is not None else [])]
    for name, values in both:
        lines.append(f"| {name.replace('|', '/')} | {' | '.join(_number(values.get(key)) for key in keys)} |")
    return "\n".join(lines)


def markdown_report(report: Mapping[str, Any], sheets: Iterable[str] = ()) -> str:
    """The whole report for people: figures, what they were made with, what was left out, and the contact sheets."""
    protocol, measures = report["protocol"], report["measures"]
    lines = ["# Evaluation", "", *_interval_table(measures), "", *_how(protocol, measures)]
    if report["skipped"]:
        lines += ["", f"**{len(report['skipped'])} left out:**", "", *(f"- {note}" for note in report["skipped"])]
    means = {key: value["mean"] for key, value in measures.items()}
    lines += ["", "## Subjects", "", markdown_table(report["subjects"], "subject", means)]
    lines += ["", "## Kinds of prompts", "", markdown_table(report["categories"], "kind")]
    lines += ["", "## Prompts", "", markdown_table(report["prompts"], "prompt")]
    pictures = list(sheets)
    if pictures:
        lines += ["", "## Pictures", "", *(f"![{name}]({name})\n" for name in pictures)]
    return "\n".join(lines).rstrip() + "\n"


def _interval_table(measures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| measure | mean | 95 % over subjects |", "| --- | ---: | ---: |"]
    for key, value in measures.items():
        span = f"{_number(value['low'])} .. {_number(value['high'])}" if "low" in value else "one subject"
        lines.append(f"| {MEASURES[key]} | {_number(value['mean'])} | {span} |")
    return lines


def _how(protocol: Mapping[str, Any], measures: Iterable[str]) -> list[str]:
    counts = (
        f"subjects: {protocol['subjects']}; prompts of each: {protocol['prompts_per_subject']}; pictures of each: "
        f"{_span(protocol['pictures_per_prompt'])}; pictures in all: {protocol['pictures']}"
    )
    encoders = [f"{name.upper()}: {protocol[name] or 'none'}" for name in ("clip", "dino")]
    lines = [
        f"- {counts}",
        f"- {'; '.join(encoders)}",
        f"- captions begin with “{protocol['text_prefix']}”; references have a short side of "
        f"{protocol['reference_side']} pixels",
    ]
    if any(key.endswith("_fg") for key in measures):
        lines.append(f"- FG: everything outside the masks has the value {protocol['background_fill']:g}")
    if protocol["similarity_without"]:
        lines.append(f"- similarity leaves out the prompts about {', '.join(protocol['similarity_without'])}")
    return lines


def _over_subjects(subjects: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    found = {}
    for key in MEASURES:
        values = [means[key] for means in subjects.values() if key in means]
        if not values:
            continue
        found[key] = {"mean": float(np.mean(values)), "subjects": len(values)}
        if len(values) > 1:
            interval = paired_bootstrap(values, np.zeros(len(values)))
            found[key] |= {"low": interval.low, "high": interval.high}
    return found


def _grouped(results: Sequence[CellResult], label: Any, skip_categories: Sequence[str]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, list[np.ndarray]]] = {}
    for result in results:
        own = groups.setdefault(label(result), {})
        for key, values in result.scores.items():
            if key == TEXT_MEASURE or result.cell.prompt.category not in skip_categories:
                own.setdefault(key, []).append(values)
    return {
        name: measure_means({key: np.concatenate(values) for key, values in own.items()})
        for name, own in groups.items()
    }


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _span(value: int | Sequence[int]) -> str:
    return str(value) if isinstance(value, int) else f"{value[0]} to {value[1]}"
