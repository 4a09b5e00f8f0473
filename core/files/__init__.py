"""Files of a learned word: safetensors only, names that stay in their folder, writes that are whole or absent."""

from typing import TYPE_CHECKING

from ..later import later
from .printable import printable  # a module of this name, once imported, would stand in its place

if TYPE_CHECKING:
    from .atomic import all_or_none, atomic_write_verified
    from .bundle import load_bundle, save_bundle
    from .contents import describe, kind_of, load_concept
    from .embedding import check_widths, layout_of, load_embedding, save_embedding, save_xti
    from .errors import ConceptFileError, LearnedNothingError
    from .learned import check_learned
    from .names import inside, nameable, safe_name, safe_path
    from .networks import describe_network

__getattr__ = later(
    __name__,
    {
        "atomic": ("all_or_none", "atomic_write_verified"),
        "bundle": ("load_bundle", "save_bundle"),
        "contents": ("describe", "kind_of", "load_concept"),
        "embedding": ("check_widths", "layout_of", "load_embedding", "save_embedding", "save_xti"),
        "errors": ("ConceptFileError", "LearnedNothingError"),
        "learned": ("check_learned",),
        "names": ("inside", "nameable", "safe_name", "safe_path"),
        "networks": ("describe_network",),
    },
)

__all__ = [
    "ConceptFileError",
    "LearnedNothingError",
    "all_or_none",
    "atomic_write_verified",
    "check_learned",
    "check_widths",
    "describe",
    "describe_network",
    "inside",
    "kind_of",
    "layout_of",
    "load_bundle",
    "load_concept",
    "load_embedding",
    "nameable",
    "printable",
    "safe_name",
    "safe_path",
    "save_bundle",
    "save_embedding",
    "save_xti",
]
