"""`contextual-inversion claims`: CoRe against plain textual inversion on ConceptWorld, paired by concept and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEVELOPMENT = ("crested-bird", "goblet")
"""Concepts on which learning rate and weights were chosen; never among those that are judged."""
MEASURES = {
    "fidelity": "prompt fidelity",
    "held_out_background": "held-out background right",
    "leak": "training background leaks",
    "recognised": "subject recognised",
    "similarity": "subject similarity",
    "sim1": "sim1",
    "sim2": "sim2",
    "seconds": "seconds",
}


def main(
    folder: Path = Path("out/claims"),
    concepts: tuple[str, ...] = (),
    seeds: int = 3,
    rates: tuple[float, ...] = (2e-2,),
    equal_time: bool = True,
) -> dict[str, Any]:
    """Train every concept with every seed both ways, judge the pictures, and compare pair by pair.

    A cell that is done is kept in FOLDER and not done again, so an interrupted run goes on where it was.

    Args:
        folder: Where each trial's figures are kept.
        concepts: Held-out concepts; all that were not used for development, if none are named.
        seeds: Seeds 1..N of each concept.
        rates: Learning rates, each a comparison of its own.
        equal_time: Also train plain textual inversion for as long as CoRe took.
    """
    from tqdm import tqdm

    from ..core.world import concepts as world
    from .trials import cached_trial, core_inversion, demo_model, method_key, plain_inversion, run_trial

    names = concepts or tuple(name for name in world.CONCEPTS if name not in DEVELOPMENT)
    model = demo_model()
    cells = [(rate, name, seed) for rate in rates for name in names for seed in range(1, seeds + 1)]
    trials: list[dict[str, Any]] = []
    for rate, name, seed in tqdm(cells, desc="cells"):
        done = {}
        for method in (plain_inversion(learning_rate=rate), core_inversion(model, learning_rate=rate)):
            key = f"{method_key(method)}-{name}-{seed}"
            done[method.name] = cached_trial(
                folder, key, lambda m=method, n=name, s=seed: run_trial(model, m, n, s).figures
            )
        trials += [{**figures, "learning_rate": rate} for figures in done.values()]
        if equal_time:
            trials.append({**_longer(model, folder, done, rate, name, seed), "learning_rate": rate})
    report = {"trials": trials, "development_concepts": DEVELOPMENT, "comparisons": compare(trials)}
    for line in as_markdown(report["comparisons"]):
        print(line)
    return report


def _longer(
    model: Any, folder: Path, done: dict[str, dict[str, Any]], rate: float, name: str, seed: int
) -> dict[str, Any]:
    """Plain textual inversion with the steps that CoRe's time would have paid for."""
    from ..core.training.presets import DEMO
    from .trials import cached_trial, method_key, plain_inversion, run_trial

    # Rounded to tens, so that the clock's jitter does not make a cell anew on every resume.
    ratio = done["core"]["seconds"] / done["ti"]["seconds"]
    steps = max(DEMO.values["steps"], round(DEMO.values["steps"] * ratio / 10) * 10)
    method = plain_inversion(learning_rate=rate)
    key = f"{method_key(method)}-equal-time-{name}-{seed}"

    def run() -> dict[str, Any]:
        longer = plain_inversion(learning_rate=rate, steps=steps)
        return {**run_trial(model, longer, name, seed).figures, "method": "ti_equal_time", "steps": steps}

    return cached_trial(folder, key, run)


def compare(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each learning rate and measure: both means and the paired difference with its 95 % bootstrap interval,
    concepts drawn before seeds (`core.maths.statistics`)."""
    from ..core.maths.statistics import paired_bootstrap

    rows = []
    for rate in sorted({trial["learning_rate"] for trial in trials}):
        chosen = {(t["method"], t["concept"], t["seed"]): t for t in trials if t["learning_rate"] == rate}
        cells = sorted({(concept, seed) for _, concept, seed in chosen})
        for control in ("ti", "ti_equal_time"):
            if any((control, *cell) not in chosen for cell in cells) or len(cells) < 2:
                continue
            for measure in MEASURES:
                core = [chosen[("core", *cell)][measure] for cell in cells]
                plain = [chosen[(control, *cell)][measure] for cell in cells]
                gain = paired_bootstrap(core, plain, groups=[concept for concept, _ in cells])
                rows.append(
                    {
                        "learning_rate": rate,
                        "control": control,
                        "measure": measure,
                        "plain": sum(plain) / len(plain),
                        "core": sum(core) / len(core),
                        "difference": gain.value,
                        "low": gain.low,
                        "high": gain.high,
                        "cells": len(cells),
                    }
                )
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The comparisons as a table."""
    lines = [
        "| learning rate | against | measure | plain TI | CoRe | difference (95 % interval) | pairs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    control = {"ti": "equal steps", "ti_equal_time": "equal time"}
    for row in rows:
        gain = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        numbers = f"{row['plain']:.3f} | {row['core']:.3f} | {gain} | {row['cells']}"
        lines.append(
            f"| {row['learning_rate']:g} | {control[row['control']]} | {MEASURES[row['measure']]} | {numbers} |"
        )
    return lines
