"""A training as people see it go by: a bar, previews, and one JSON line an event."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .places import going_on, require_file, write_picture

if TYPE_CHECKING:
    import torch

    from ..core.training.run.events import Event, Finished, Preview
    from ..core.training.trainer import TrainingRun


def follow(run: TrainingRun, out: Path, events: Path | None) -> Finished:
    """Show a bar, write previews and JSON lines, and give back the last event. The first Ctrl-C stops and keeps."""

    from tqdm import tqdm

    from ..core.training.run.events import Finished, Preview, Started, Step

    if events is not None:
        require_file(events, "--events")
    shown: dict[str, str] = {}
    with tqdm(total=run.settings.steps, unit="step", dynamic_ncols=True) as bar:
        for event in run:
            if events is not None:
                with going_on("line of --events"), events.open("a", encoding="utf-8") as lines:
                    print(json.dumps(as_line(event)), file=lines)
            if isinstance(event, Started):
                bar.update(event.first_step)
            elif isinstance(event, Step):
                bar.update(event.step - bar.n)
                if event.losses:
                    shown |= means(event.losses)
                    bar.set_postfix(shown)
            elif isinstance(event, Preview):
                with going_on("preview"):
                    write_preview(event, out / "previews")
            elif isinstance(event, Finished):
                return event
    raise RuntimeError("the training ended without a result")


def means(losses: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The mean of each loss over those of the last steps that it is in, as text; none of one that is in none."""
    return {name: f"{float(values.nanmean()):.4g}" for name, values in losses.items() if not bool(values.isnan().all())}


def class_picture_lines() -> Callable[[int, int], None]:
    """Says at each tenth how many of the prior's class pictures are drawn."""

    from tqdm import tqdm

    said: set[int] = set()

    def progress(done: int, wanted: int) -> None:
        if 10 * done // wanted not in said:
            said.add(10 * done // wanted)
            tqdm.write(f"drawing class pictures: {done} of {wanted}")

    return progress


def as_line(event: Event) -> dict[str, Any]:
    """An event as JSON data, without pictures and vectors. Where a step has none of a loss, that is None."""

    import torch

    from ..core.concept import Concept
    from ..core.training.run.events import CheckpointSaved, Finished

    line: dict[str, Any] = {"event": type(event).__name__.lower()}
    for key, value in vars(event).items():
        if key == "losses":
            line[key] = value and {name: [_number(one) for one in losses] for name, losses in value.items()}
        elif not isinstance(value, torch.Tensor | Concept):
            line[key] = str(value) if isinstance(value, Path) else value
    if isinstance(event, CheckpointSaved):
        line["path"] = event.path.name
    if isinstance(event, Finished):
        del line["losses"]
    return line


def _number(value: torch.Tensor) -> float | None:
    return None if value.isnan() else float(value)


def write_preview(preview: Preview, folder: Path) -> Sequence[Path]:
    """PNG files of a preview."""

    import numpy as np
    from PIL import Image

    paths = []
    for number, image in enumerate(preview.images):
        picture = Image.fromarray((image.numpy() * 255).round().astype(np.uint8))
        paths.append(write_picture(picture, folder / f"step_{preview.step:06d}_{number}.png"))
    return paths
