"""A pretraining as people see it go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def follow_pretraining(
    run: Iterable[Any], *, quiet: bool = False, also: Callable[[Any], None] = lambda event: None
) -> Any:
    """Show a run as it goes, unless `quiet`; `also` hears every event. Returns the last one, which is how it ended."""

    from tqdm import tqdm

    from ..core.training.run.events import CheckpointSaved, Started, Step

    event, bar = None, None
    try:
        for event in run:
            also(event)
            if isinstance(event, Started) and not quiet:
                bar = tqdm(total=event.total_steps, initial=event.first_step, unit="step", mininterval=1.0)
            elif isinstance(event, Step) and bar is not None:
                bar.update(event.step - bar.n)
                if event.losses is not None:
                    means = {name: f"{value.mean():.3f}" for name, value in event.losses.items()}
                    bar.set_postfix(means, refresh=False)
            elif isinstance(event, CheckpointSaved) and bar is not None:
                bar.write(f"checkpoint {event.path}")
    finally:
        if bar is not None:
            bar.close()  # also before an error, which would stand behind it on its line
    return event
