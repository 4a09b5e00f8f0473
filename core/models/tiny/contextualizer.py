"""The contextualizer that was pretrained for the tiny model's text encoder (docs/tiny_model.md)."""

from __future__ import annotations

from functools import lru_cache

from ...files.contextualizer import load_contextualizer as read_contextualizer
from ...networks.contextualizer import Contextualizer
from .weights import tiny_weights_path


@lru_cache(maxsize=1)
def load_contextualizer() -> Contextualizer:
    """The bundled one, untrainable. It is shared, so it may not be changed.

    Raises FileNotFoundError where its file is missing, ConceptFileError where that is damaged.
    """
    path = tiny_weights_path("contextualizer")
    if not path.exists():
        raise FileNotFoundError(f"the tiny model's weights are missing: {path.name}; see docs/tiny_model.md")
    return read_contextualizer(path)
