"""Names of files: what can be typed as `embedding:name` on every system, and never leaves its folder."""

from __future__ import annotations

import unicodedata
from itertools import groupby
from pathlib import Path

MAX_CHARACTERS = 100
MAX_BYTES = 200  # in UTF-8: leaves room for "_999.safetensors" and a temporary name in a 255-byte file name

ALLOWED_PUNCTUATION = "_-.+"
# Windows opens the device whatever the ending is, and takes superscript digits for digits.
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
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
        raise ValueError(f"the name {name[:20]!r}... has {len(name)} characters; at most {MAX_CHARACTERS} are possible")
    wrong = sorted({character for character in name if not _allowed(character)})
    if wrong:
        raise ValueError(
            f"the name {name!r} holds {', '.join(map(repr, wrong))}; "
            f"use letters, digits and {' '.join(ALLOWED_PUNCTUATION)} so that embedding:name works in a prompt"
        )
    if name[0] in ".-" or name[-1] == ".":
        raise ValueError(f"the name {name!r} may not begin with a dot or hyphen, nor end with a dot")
    if name.casefold().split(".")[0] in RESERVED:
        raise ValueError(f"the name {name!r} is reserved by Windows; choose another")
    if name.casefold().endswith(ENDINGS):
        raise ValueError(f"give the name {name!r} without its file ending; .safetensors is added")
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


def inside(root: Path | str, name: str, ending: str = "") -> Path:
    """The path of `name` + `ending` in the folder `root`, with every symbolic link resolved.

    `name` may hold subfolders after forward slashes; every part must be a `safe_name`. Nothing is created.

    Raises:
        ValueError: a part is unsafe, or a symbolic link on the way leads out of `root`.
    """
    parts = [safe_name(part) for part in name.split("/")] if isinstance(name, str) else [safe_name(name)]
    folder = Path(root).resolve()
    path = folder.joinpath(*parts[:-1], parts[-1] + ending).resolve()
    if not path.is_relative_to(folder) or path == folder:
        raise ValueError(f"{name!r} leads out of its folder through a symbolic link")
    return path


def _allowed(character: str) -> bool:
    # Letters, marks (vowel signs of many scripts) and numbers.
    return character in ALLOWED_PUNCTUATION or unicodedata.category(character)[0] in "LMN"
