"""Where results go: refused before the work begins, and what was there stays until the new is whole."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..core.concept import Concept


def require_folder(folder: Path, option: str = "--out") -> None:
    """Makes the folder. Raises OSError that names the `option` where no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"nothing can be written to {option} {folder}: {error.strerror}") from error


def require_file(file: Path, option: str = "--out") -> None:
    """Makes the folder of `file`. Raises OSError that names the `option` where it cannot be written."""
    if file.is_dir():
        raise IsADirectoryError(f"{option} {file} is a folder; name a file in it")
    require_folder(file.parent, option)


def file_name(out: Path, overwrite: bool) -> str:
    """The name, without its ending, of the file that is to be written to `out`.

    Raises ValueError for a name that no file of ours can have, FileExistsError where it is taken and may not be
    replaced, and another OSError where nothing can be written there.
    """
    from ..core.files import safe_name
    from ..core.files.writing import ENDING

    name = safe_name(out.name.removesuffix(ENDING))
    file = out.with_name(name + ENDING)
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} exists; choose another name with --out, or allow --overwrite")
    require_file(file)
    return name


def require_empty(checkpoints: Path | None, resume: bool) -> None:
    """Raises ValueError for a resume from nowhere, FileExistsError where beginning anew would replace what waits."""
    from ..core.training.run.checkpoint import checkpoints_in

    if resume and checkpoints is None:
        raise ValueError("--resume needs the folder of --checkpoints")
    waiting = [] if checkpoints is None or resume else checkpoints_in(checkpoints)
    if waiting:
        raise FileExistsError(
            f"{waiting[0]} waits to be gone on with: add --resume, or name another folder for --checkpoints"
        )


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """An OSError inside is said and no more: a file beside the work is no reason to end it."""
    try:
        yield
    except OSError as error:
        print(f"no {what}, the work goes on: {error}", file=sys.stderr)


def write_network(
    save: Callable[..., Path], network: Any, out: Path, name: str, *, half: bool, overwrite: bool
) -> dict[str, Any]:
    """Save a network beside `out` under its `name`, and say where; the figures of its file.

    A name that was taken while it trained gets a number, and where that disk takes no file, the folder for temporary
    files does: days of training are not thrown away. Raises OSError where neither does.
    """
    import torch

    how = {"dtype": torch.float16 if half else torch.float32}
    try:
        return written(save(network, out.parent, name, if_exists="replace" if overwrite else "number", **how))
    except OSError as error:
        file = save(network, Path(tempfile.gettempdir()), name, if_exists="number", **how)
        print(f"{error}; so it is in {file.parent}, from where it has to be moved", file=sys.stderr)
        return written(file)


def written(file: Path) -> dict[str, Any]:
    """Says that a network's file was written; its figures."""
    size = file.stat().st_size
    print(f"wrote {file} ({size / 1e6:.1f} MB)")
    return {"file": str(file), "bytes": size}


def write_picture(picture: Image, file: Path) -> Path:
    """The picture as PNG, whole or not at all. Raises OSError."""
    from ..core.files.atomic import atomic_write_verified

    data = BytesIO()
    picture.save(data, format="PNG")
    return atomic_write_verified(file, data.getvalue(), if_exists="replace")


def write_concept(concept: Concept, out: Path) -> dict[str, Any]:
    """Write embedding and bundle, both or neither, read them back and compare.

    Raises OSError, and LearnedNothingError where they differ.
    """
    import torch

    from ..core.files import LearnedNothingError, all_or_none, load_concept, save_bundle, save_embedding
    from .words import say_meaning, say_typing

    with all_or_none():
        embedding = save_embedding(concept, out / "embeddings", if_exists="replace")
        bundle = save_bundle(concept, out / "bundles", if_exists="replace")
    for path in (embedding, bundle):
        found = load_concept(path, widths={name: value.shape[1] for name, value in concept.vectors.items()})
        for part in ("vectors", "layer_vectors", "lora") if path == bundle else ("vectors",):
            ours, theirs = getattr(concept, part) or {}, getattr(found, part) or {}
            if ours.keys() != theirs.keys() or any(not torch.equal(theirs[name], ours[name]) for name in ours):
                raise LearnedNothingError(f"{path} read back does not hold the learned {part}")
    print(f"wrote {embedding} and {bundle}; type embedding:{concept.name} in a prompt")
    say_meaning(embedding, concept.name)
    say_typing(concept.name, concept.length)
    return {"embedding": str(embedding), "bundle": str(bundle)}


def write_predicted(concept: Concept, out: Path) -> dict[str, str]:
    """Write the bundle and its embedding alone, both or neither; both are replaced where they exist."""
    import torch

    from ..core.files import all_or_none, save_bundle, save_embedding
    from .words import say_meaning, say_typing

    with all_or_none():
        bundle = save_bundle(concept, out, dtype=torch.float32, if_exists="replace")
        embedding = save_embedding(concept, out / "embeddings", if_exists="replace")
    print(f"<{concept.name}> is near {concept.hard_token!r}; wrote {bundle} and {embedding}")
    say_meaning(embedding, concept.name)
    say_typing(concept.name, concept.length)
    return {"bundle": str(bundle), "embedding": str(embedding)}


def predicted_figures(concept: Concept) -> dict[str, Any]:
    """What a person wants to know of a predicted word, as plain data."""
    return {
        "name": concept.name,
        "class_word": concept.class_word,
        "hard_token": concept.hard_token,
        "numbers": sum(value.numel() for value in (concept.lora or {}).values()),
        "predicted": concept.provenance.get("predicted"),
        "tuned": concept.provenance.get("tuned"),
        "norms": {encoder: float(value.norm(dim=-1).mean()) for encoder, value in concept.vectors.items()},
    }
