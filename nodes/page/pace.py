"""How long trainings took on this machine, so that the next one like them can say how long it will take."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management

from ...core.files.atomic import atomic_write_verified
from ..comfy.folders import checkpoints_root
from .outlook import Outlook

MOST = 200
"""Kinds of trainings that are remembered."""
ENOUGH = 10
"""Steps after which the first, slow one counts for little."""
MODEL_INPUTS = ("model", "clip", "vae", "regularizer", "contextualizer", "tuning_encoder", "clip_vision")
"""What comes along these decides how long a step takes, and how long it takes to be ready for the first."""
LONGEST_NAME = 200


@dataclass
class Pace:
    """Seconds of the parts of a run, as they go by: what comes before its first step, `steps`, and `pictures`."""

    before: float = 0.0
    stepping: float = 0.0
    steps: int = 0
    drawing: float = 0.0
    pictures: int = 0

    def __post_init__(self) -> None:
        self._at = time.perf_counter()

    def started(self) -> None:
        self.before += self._since()

    def stepped(self, steps: int = 0) -> None:
        """So many steps are done, or what belongs to them, as a checkpoint."""
        self.stepping += self._since()
        self.steps += steps

    def drew(self) -> None:
        self.drawing += self._since()
        self.pictures += 1

    def left(self, steps: int, pictures: int) -> float | None:
        """Seconds for so many more; None before the first step. A picture that none was like takes nothing."""
        if self.steps == 0:
            return None
        each = self.drawing / self.pictures if self.pictures else 0.0
        return steps * self.stepping / self.steps + pictures * each

    def _since(self) -> float:
        past, self._at = self._at, time.perf_counter()
        return self._at - past


def kind_of(prompt: Mapping[str, Any] | None, node_id: str, outlook: Outlook) -> str | None:
    """What trainings have in common that take equally long a step: the models that come in, and what of the choices
    counts. None where the graph is not known."""
    node = (prompt or {}).get(node_id)
    if not node:
        return None
    given = {name: value for name, value in node.get("inputs", {}).items() if name in MODEL_INPUTS}
    sources = {name: _source(prompt, value, ()) for name, value in given.items()}
    device = comfy.model_management.get_torch_device()
    name = comfy.model_management.get_torch_device_name(device)
    facts = [node.get("class_type"), sources, outlook.batch, outlook.vectors, outlook.rank, outlook.like, name]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _source(prompt: Mapping[str, Any], value: Any, seen: tuple[str, ...]) -> Any:
    """A node that something comes from, with the names of files on it and what comes to it. Numbers count for nothing:
    they hardly change how long it takes."""
    if not is_link(value) or value[0] in seen or value[0] not in prompt:
        return value if isinstance(value, str) and len(value) < LONGEST_NAME else None
    node = prompt[value[0]]
    inputs = {name: _source(prompt, one, (*seen, value[0])) for name, one in node.get("inputs", {}).items()}
    return [node.get("class_type"), {name: one for name, one in inputs.items() if one is not None}]


def is_link(value: Any) -> bool:
    """Whether an input's value in a graph stands for what another node gives."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def estimate(kind: str | None, outlook: Outlook) -> float | None:
    """Seconds that a run will take, as far as earlier ones of its kind tell; None where none was, or none long enough
    to tell."""
    known = _remembered().get(kind) if kind else None
    try:
        if known["steps"] < min(ENOUGH, outlook.steps):
            return None
        pictures = outlook.pictures * known["picture"] if outlook.pictures else 0.0
        return known["before"] + outlook.steps * known["step"] + pictures
    except (KeyError, TypeError):  # nothing, or no picture was drawn then
        return None


def remember(kind: str | None, pace: Pace) -> None:
    """Keep how long a run took, for the next of its kind. One of fewer steps than are `ENOUGH` tells less than a longer
    one before it, and one without a step nothing."""
    every = _remembered()
    earlier = every.pop(kind, None)
    known = earlier if isinstance(earlier, dict) else {}
    if kind is None or pace.steps < max(1, min(ENOUGH, known.get("steps", 0))):
        return
    step = round(pace.stepping / pace.steps, 6)
    known |= {"before": round(pace.before, 3), "step": step, "steps": pace.steps}
    if pace.pictures:
        known["picture"] = round(pace.drawing / pace.pictures, 4)
    kept = dict([*every.items(), (kind, known)][-MOST:])
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        atomic_write_verified(_file(), json.dumps(kept).encode(), if_exists="replace")
    except OSError as error:  # as on a full disk: no reason to end a training
        logging.warning("Contextual Inversion: how long this took is not remembered: %s", error)


def _remembered() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file() -> Path:
    return checkpoints_root().with_name("how_long.json")
