"""`contextual-inversion search`: weights, rates, ranks and steps of whole pipelines, chosen on development concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def main(
    *,
    recipes: tuple[str, ...] = (),
    folder: Path = Path("out/search"),
    concepts: tuple[str, ...] = (),
    candidates: int = 8,
    factor: int = 2,
    first: int = 0,
    seeds: int = 2,
    seed: int = 0,
    prompts: int = 14,
    workers: int = 1,
    around: Path | None = None,
    hours: float = 0.0,
    json: Path | None = None,
) -> dict[str, Any]:
    """Choose each recipe's weights by the share of pictures that show the subject and obey, on development concepts.

    Successive halving over a scrambled Sobol design; the first candidate is what is recommended today. All take the
    same processor seconds. A trial that is done is kept in FOLDER, under the model's fingerprint, and not done again;
    on another machine the search goes on from what `--json FILE` has of it. One that is interrupted or out of time
    publishes what it has, marked "complete": false, and has chosen nothing.
    With `--json docs/claims/search.json` the part `pipelines` of `claims` goes by what was chosen; what a second
    search, `search_around.json`, chose otherwise stands beside it among the `leaders`.

    Args:
        recipes: Whose weights are chosen; all if none are named, and an unknown one is answered with a list.
        folder: Where each trial's figures are kept.
        concepts: Development concepts; if none are named, all. Judged ones are refused.
        candidates: Settings that each recipe begins with.
        factor: One of so many candidates goes on to a round with so many times as many cells.
        first: Cells of the first round; 0: the first seed of every concept.
        seeds: Seeds 1..N of each concept.
        seed: Of the design.
        prompts: So many of the evaluation prompts, evenly of all kinds; 0: all.
        workers: Processes that train at the same time, one thread each.
        around: The record of an earlier search: what it chose is the first candidate, and others lie around it, from
            half to twice as much.
        hours: After so many no new trial is begun; 0: no end.
    """
    from .searching import search

    return search(
        recipes=recipes,
        folder=folder,
        concepts=concepts,
        candidates=candidates,
        factor=factor,
        first=first,
        seeds=seeds,
        seed=seed,
        prompts=prompts,
        workers=workers,
        around=around,
        hours=hours,
        target=json,
    )
