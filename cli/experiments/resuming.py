"""Long runs on several machines: trials are taken up from what an earlier run published, and a run that is stopped
publishes what it has."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .tables import MEASURES

COSTS = "step-costs"
"""What the measured costs of `pipeline_costs` are kept under, beside the trials."""
ADDED = ("cell", "recipe", "candidate")
"""Keys that a trial has where it is published, and not where it is kept."""
JUDGED_WITH = ("unet", "text_encoder", "vae", "judge")
"""Weight files that decide a trial's figures."""


class Stopped(KeyboardInterrupt):
    """A run that was interrupted; `figures` are those to publish."""

    def __init__(self, message: str, figures: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


def weights_digest() -> str:
    """Sixteen hex digits of the tiny model's weight files and its judge's."""
    from ...core.models.tiny.weights import fingerprint

    return fingerprint(JUDGED_WITH)


def published(files: Iterable[Path], model: str, weights: str) -> dict[str, dict[str, Any]]:
    """The trials in JSON files of earlier runs on the same model and judge, by the name of their cell, and under
    `COSTS` what steps cost them. Files that are not there or empty hold none.

    Raises ValueError for a file that is not JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        try:
            record = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise ValueError(f"{file} holds no figures of an earlier run: {error}") from error
        if not isinstance(record, dict) or (record.get("model"), record.get("weights")) != (model, weights):
            continue
        for one in (record, *record.get("parts", {}).values()):
            found.update({trial["cell"]: trial for trial in one.get("trials", []) if "cell" in trial})
            found.update({COSTS: one["costs"]} if "costs" in one else {})
    return found


def take_up(
    folder: Path, found: Mapping[str, Mapping[str, Any]], keys: Iterable[str], *, replace: bool = False
) -> None:
    """Put what was published of `keys` into the folder of trials, as if it had been made here; what is there stays,
    unless it is to be replaced."""
    for key in keys:
        if key in found and (replace or not kept(folder, key)):
            own = {name: value for name, value in found[key].items() if name not in ADDED}
            keep(folder, key, with_nan(own))


def with_nan(value: Any) -> Any:
    """Published figures with NaN where a measure was not asked for, which JSON cannot say but as null."""
    if isinstance(value, Mapping):
        return {k: math.nan if v is None and k in MEASURES else with_nan(v) for k, v in value.items()}
    return [with_nan(one) for one in value] if isinstance(value, list) else value


def kept(folder: Path, key: str) -> bool:
    """Whether a trial is there."""
    return (folder / f"{key}.json").exists()


def read_kept(folder: Path, key: str) -> dict[str, Any]:
    """The figures of a trial that is there."""
    return json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))


def keep(folder: Path, key: str, figures: Mapping[str, Any]) -> None:
    """Write the figures of a trial, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    temporary.replace(path)


def end_of(hours: float) -> float:
    """When no new trial is begun any more, on the clock of `time.monotonic`; 0 hours are no end.

    Raises ValueError for fewer.
    """
    if not hours >= 0:
        raise ValueError(f"--hours is 0 or more, not {hours}")
    return time.monotonic() + 3600 * hours if hours else math.inf


def done_of(
    run: Iterator[tuple[str, dict[str, Any]]], keys: Collection[str], folder: Path
) -> tuple[dict[str, dict[str, Any]], KeyboardInterrupt | None]:
    """The figures that `run` makes, and those of `keys` that are in `folder` where it was interrupted; by what."""
    done: dict[str, dict[str, Any]] = {}
    try:
        with sigterm_interrupts():
            done.update(run)
    except KeyboardInterrupt as stop:
        return {key: done.get(key) or read_kept(folder, key) for key in keys if key in done or kept(folder, key)}, stop
    return done, None


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as Ctrl-C, where signals can be heard: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def unfinished(
    report: Mapping[str, Any], counted: tuple[int, int], stop: KeyboardInterrupt | None, target: Path | None
) -> dict[str, Any]:
    """The report of a run that made `counted` trials, so many of so many; says so in a last line.

    Raises `Stopped` with it where the run was interrupted.
    """
    done, of = counted
    why = "the hours are over" if stop is None else str(stop) or "interrupted"
    place = f"{target} has them" if target else "they are kept, and --json FILE publishes them"
    said = f"{why}: {done} of {of} trials are done; {place}, and the same command goes on"
    whole = {**report, "complete": False, "done": done, "of": of}
    if stop is not None:
        raise Stopped(said, whole) from stop
    print(said)
    return whole
