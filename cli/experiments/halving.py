"""Choosing among settings by successive halving: a quasi-random design, and rounds in which the better part goes on.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) over a scrambled Sobol design. What a round has more of
than the one before is *cells* (concepts and seeds on which a candidate is judged), not steps of training: steps are
among what is chosen. That is how racing does it too (López-Ibáñez et al., irace, doi 10.1016/j.orp.2016.09.002): all
that are left are judged on the same cells, so a round compares like with like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch.quasirandom import SobolEngine

Candidate = Mapping[str, Any]
Key = TypeVar("Key", bound=Hashable)
Score = tuple[float, ...]
"""Compared from the first number on; higher is better."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, evenly in their logarithm, of three digits; `whole` ones where that is said."""

    low: float
    high: float
    whole: bool = False

    def at(self, share: float) -> float | int:
        """The number at a share within 0..1 of the way."""
        value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return round(value) if self.whole else float(f"{value:.3g}")

    def around(self, value: float) -> Range:
        """The part of it from half of `value` to twice as much. Raises ValueError for a value outside of it."""
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} is not within {self.low} .. {self.high}")
        return replace(self, low=max(self.low, value / 2), high=min(self.high, value * 2))


@dataclass(frozen=True)
class Choice:
    """One of some values, each for as long a share of the way."""

    values: tuple[float | int, ...]

    def at(self, share: float) -> float | int:
        """The value at a share within 0..1 of the way."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def around(self, value: float) -> Choice:
        """`value` and those beside it. Raises ValueError for one that it has not."""
        if value not in self.values:
            raise ValueError(f"{value} is none of {', '.join(map(str, self.values))}")
        at = self.values.index(value)
        return Choice(self.values[max(at - 1, 0) : at + 2])


Space = Mapping[str, Range | Choice]


def design(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` candidates of `space`, spread evenly over it (scrambled Sobol). Raises ValueError for an empty one."""
    if not space:
        raise ValueError("there is nothing to choose")
    points = SobolEngine(len(space), scramble=True, seed=seed).draw(count).tolist() if count else []
    return [
        {name: axis.at(share) for (name, axis), share in zip(space.items(), point, strict=True)} for point in points
    ]


@dataclass(frozen=True)
class Round:
    """`candidates` are judged on the first `cells`, and `kept` of them go on."""

    candidates: int
    cells: int
    kept: int


def rounds(candidates: int, cells: int, first: int, factor: int) -> list[Round]:
    """All candidates on the `first` cells, one `factor`-th of them on `factor` times as many, and so on until all
    cells have been seen or one is left. Raises ValueError where there is nothing to do."""
    if candidates < 1 or factor < 2 or not 1 <= first <= cells:
        raise ValueError(
            f"at least one candidate, a factor of 2 or more, and 1 .. {cells} cells in the first round: "
            f"{candidates}, {factor}, {first}"
        )
    found, left, seen = [], candidates, first
    while seen < cells and left > 1:
        found.append(Round(left, seen, math.ceil(left / factor)))
        left, seen = found[-1].kept, min(cells, seen * factor)
    return [*found, Round(left, seen, 1)]


def halved(
    contests: Mapping[Key, int], plan: Sequence[Round], judged: Callable[[Mapping[Key, Sequence[int]], int], Mapping]
) -> dict[Key, list[dict[str, Any]]]:
    """Every contest's rounds; `contests` says how many candidates each has, and the last round's first "kept" one won.

    `judged` gets who is left in each contest and the number of cells, and answers with a `Score` for each (contest,
    candidate). Contests go on together, so that their cells can be worked on at the same time. Of equals the earlier
    candidate goes on.
    """
    left = {key: list(range(count)) for key, count in contests.items()}
    told: dict[Key, list[dict[str, Any]]] = {key: [] for key in contests}
    for one in plan:
        scores = judged(left, one.cells)
        for key, those in left.items():
            ranked = sorted(those, key=lambda index, key=key: scores[key, index], reverse=True)
            kept = ranked[: one.kept]
            told[key].append({"cells": one.cells, "ranked": ranked, "kept": kept})
            left[key] = kept
    return told
