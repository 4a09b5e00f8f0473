"""`contextual-inversion export CONCEPT --for PROGRAM`: a word for another program, and what to type there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from ..core.files.programs import PROGRAMS, ProgramKey
from .places import require_folder
from .words import clip_vocabulary


def main(
    concept: Annotated[Path, tyro.conf.Positional],
    *,
    program: Annotated[ProgramKey, tyro.conf.arg(name="for")],
    out: Path | None = None,
    name: str | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the files that another program reads of a concept: its word, its LoRA, its vectors for each layer.

    Each is written whole or not at all; what the program cannot hold is said. Then the lines to type there.

    Args:
        concept: A bundle, embedding or XTI file (.safetensors).
        program: The program that is to read it.
        out: Folder to write to; out/export/<program> if not given.
        name: What the word is to be called there; its own name if not given.
        half: Write float16, half the size and slightly rounded.
        overwrite: Replace files of these names.
    """

    import torch

    from ..core.files import load_concept, printable, safe_name
    from ..core.files.export import export

    learned = load_concept(concept)
    folder = Path("out/export") / program if out is None else out
    safe_name(name or learned.name.rpartition("/")[2])
    require_folder(folder)
    how = {"dtype": torch.float16 if half else torch.float32, "if_exists": "replace" if overwrite else "error"}
    made = export(learned, program, folder, name, pieces=clip_vocabulary(), **how)
    lines = [f"wrote {path} ({kind})" for kind, path in made.files.items()]
    lines += [f"left out, {line}" for line in made.left_out]
    lines += [f"In {PROGRAMS[program].title}:", *(f"  {line}" for line in made.lines)]
    print("\n".join(printable(line) for line in lines))
    files = {kind: str(path) for kind, path in made.files.items()}
    return {"program": program, "files": files, "lines": made.lines, "left_out": made.left_out}
