"""Which form of the tiny model this process has: the bundled one, or the candidate that is to follow it.

The one switch between them. It is read once, when this module is imported, and nothing heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "CONTEXTUAL_INVERSION_FORM"
BUNDLED, CANDIDATE = FORMS = ("bundled", "candidate")


def chosen(environment: Mapping[str, str]) -> str:
    """What `VARIABLE` says in an environment, the bundled form where it is unset. Raises ValueError for another."""
    form = environment.get(VARIABLE) or BUNDLED
    if form not in FORMS:
        raise ValueError(f"{VARIABLE} is {' or '.join(FORMS)}, not {form!r}")
    return form


FORM = chosen(os.environ)
"""Decides the numbers of `core.models.tiny.config`, the weight files, and the concepts of `core.world.concepts`."""
ENTERING = ("comet", "teapot", "fire-engine", "parrot") if FORM == CANDIDATE else ()
"""Concepts that the world has in this form beside the ten. All are for development, none is judged."""
