"""Names of files: what can be typed as `embedding:name` on every system, and never leaves its folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

MAX_CHARACTERS = 100
MAX_BYTES = 200  # in UTF-8: leaves room for "_999.safetensors" and a temporary name in a 255-byte file name

ALLOWED_PUNCTUATION = "_-.+"
# Windows opens the device whatever the ending is, and takes superscript digits for digits.
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
READ_BY_COMFYUI = (".safetensors", ".pt", ".bin")
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pickle", ".pkl")


def safe_name(name: str) -> str:
    """`name` in Unicode's composed form (NFC), if it is safe as one part of a path and in `embedding:name`.

    Letters and digits of any script and `_ - . +` are allowed: spaces, colons, commas, brackets and quotes end or
    change an `embedding:` word in a prompt, and slashes would lead to another folder.

    Raises:
        ValueError: the name is empty, too long, reserved, hidden, ends in a file ending or a dot, or holds another
            character; the message shows it.
    """
    if not isinstance(name, str):
        raise ValueError(f"a name is a string, not {type(name).__name__}")
    name = unicodedata.normalize("NFC", name)
    if not name:
        raise ValueError("the name is empty; it is what will be typed in prompts")
    if len(name) > MAX_CHARACTERS or len(name.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ValueError(f"the name {shown(name)} has {len(name)} characters; at most {MAX_CHARACTERS} are possible")
    wrong = sorted({character for character in name if not _allowed(character)})
    if wrong:
        raise ValueError(
            f"the name {shown(name)} holds {', '.join(map(repr, wrong[:8]))}; "
            f"use letters, digits and {' '.join(ALLOWED_PUNCTUATION)} so that embedding:name works in a prompt"
        )
    if name[0] in ".-" or name[-1] == ".":
        raise ValueError(f"the name {shown(name)} may not begin with a dot or hyphen, nor end with a dot")
    if name.casefold().split(".")[0] in RESERVED:
        raise ValueError(f"the name {shown(name)} is reserved by Windows; choose another")
    if name.casefold().endswith(ENDINGS):
        raise ValueError(f"give the name {shown(name)} without its file ending; .safetensors is added")
    return name


def nameable(text: str) -> str:
    """A `safe_name` made of any text, as a picture's name: whatever no name can hold is an underscore.

    A name that is safe stays as it is.
    """
    composed = unicodedata.normalize("NFC", text)
    name = "".join("".join(run) if fine else "_" for fine, run in groupby(composed, key=_allowed))
    while len(name) > MAX_CHARACTERS or len(name.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        name = name[:-1]
    name = name.lstrip(".-").rstrip(".")
    try:
        return safe_name(name)
    except ValueError:  # empty, reserved, or with a file's ending
        return safe_name(f"_{name[: MAX_CHARACTERS // 2].replace('.', '_')}")


def safe_path(name: str) -> str:
    """`name` where each part of it between forward slashes is a `safe_name`: a file, in folders below one of ours.

    Raises ValueError that shows the whole name.
    """
    parts = name.split("/") if isinstance(name, str) else [name]
    if len(parts) > 1 and not all(parts):
        raise ValueError(
            f"the name {shown(name)} begins or ends with a slash, or has two in a row: write folder/name, and the "
            "folder is made below the one that files go to"
        )
    try:
        return "/".join(safe_name(part) for part in parts)
    except ValueError as error:
        raise (ValueError(f"{error} (in {shown(name)})") if len(parts) > 1 else error) from None


def shown(name: str) -> str:
    """`name` in quotes as an error shows it, its beginning alone where it is long."""
    return repr(name) if len(repr(name)) <= 50 else f"{name[:20]!r}..."


def taken_by(name: str, folders: Iterable[Path | str], ending: str) -> Path | None:
    """The first file of this name that one of the folders has."""
    return next((path for path in (inside(folder, name, ending) for folder in folders) if path.exists()), None)


def numbered(name: str, folders: Sequence[Path | str], ending: str) -> str:
    """`name`, or the first of name_2, name_3, ... that no folder has: files that belong together share it."""
    candidate, number = safe_path(name), 1
    while taken_by(candidate, folders, ending) is not None:
        number += 1
        candidate = safe_path(f"{name}_{number}")
    return candidate


def namesakes(folders: Iterable[Path | str], name: str) -> list[Path]:
    """The files that `embedding:name` may mean to ComfyUI, which looks into every folder below `folders` too.

    In one folder .safetensors goes before .pt and .bin; which folder goes first is left to chance.
    """
    found = []
    for top in dict.fromkeys(map(Path, folders)):
        for folder, below, _ in os.walk(top, followlinks=True):
            below.sort()
            paths = (Path(folder, f"{name}{ending}") for ending in ("", *READ_BY_COMFYUI))
            found += [path for path in paths if path.is_file()]
    return list(dict.fromkeys(found))


def changed_meaning(new: Path, folders: Iterable[Path | str], name: str) -> list[str]:
    """What to say where `embedding:name` meant another file before `new` was written, a line each."""
    lines = []
    for path in namesakes(folders, name):
        if path.parent == new.parent and path.suffix in READ_BY_COMFYUI[1:]:
            lines.append(f"embedding:{name} meant {path.name} until now; from now on it means the new file.")
        elif path != new:
            lines.append(f"embedding:{name} may also mean {path}: rename one of the two.")
    return lines


def inside(root: Path | str, name: str, ending: str = "") -> Path:
    """The path of `name` + `ending` in the folder `root`, with every symbolic link resolved.

    `name` may hold subfolders after forward slashes; every part must be a `safe_name`. Nothing is created.

    Raises:
        ValueError: a part is unsafe, or a symbolic link on the way leads out of `root`.
    """
    parts = safe_path(name).split("/")
    folder = Path(root).resolve()
    path = folder.joinpath(*parts[:-1], parts[-1] + ending).resolve()
    if not path.is_relative_to(folder) or path == folder:
        raise ValueError(f"{name!r} leads out of its folder through a symbolic link")
    return path


def _allowed(character: str) -> bool:
    # Letters, marks (vowel signs of many scripts) and numbers.
    return character in ALLOWED_PUNCTUATION or unicodedata.category(character)[0] in "LMN"
