"""What no picture for the candidate combines, whichever form this process has."""

from __future__ import annotations

from ..core.world.concepts import EVERY

RESERVED_TOO = frozenset((c.super_category, c.colour, c.second_colour) for c in EVERY.values())
"""Class and colour pairs of the ten concepts and of the four to come."""
