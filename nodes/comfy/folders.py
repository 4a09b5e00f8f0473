"""Where this pack's files live among ComfyUI's folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import folder_paths

from ...core.files.together import clear_leftovers

BUNDLES = "contextual_inversion"
EMBEDDINGS = "embeddings"
LORAS = "loras"
CONTEXTUALIZERS = "contextualizers"
TUNING_ENCODERS = "tuning_encoders"
ENDING = ".safetensors"
NONE = "none"
"""In a list of input files: none of them."""

for _kind in (BUNDLES, CONTEXTUALIZERS, TUNING_ENCODERS):
    folder_paths.add_model_folder_path(_kind, str(Path(folder_paths.models_dir) / _kind))


def first_folder(kind: str) -> Path:
    """The folder that new files of a kind go to."""
    return Path(folder_paths.get_folder_paths(kind)[0])


def files_of(kind: str) -> list[str]:
    """The safetensors files of a kind, as paths inside its folders."""
    return [name for name in folder_paths.get_filename_list(kind) if name.endswith(ENDING)]


def path_of(kind: str, file: str, what: str) -> Path:
    """The path of a file of a kind. Raises ValueError that calls it `what` where there is none of that name."""
    path = folder_paths.get_full_path(kind, file) if file in files_of(kind) else None
    if path is None:
        raise not_there(what, file)
    return Path(path)


def not_there(what: str, file: str) -> ValueError:
    """What to say of a file that is none of those on offer."""
    return ValueError(f"There is no {what} {file!r}. Choose one from the list; press R to refresh it.")


def name_in(root: Path, path: Path) -> str:
    """What ComfyUI calls a file that was written below `root`."""
    return path.relative_to(root.resolve()).as_posix()


def told(path: Path) -> str:
    """A written file as people read it: from ComfyUI's folder on where it lies inside, else in full."""
    root = Path(folder_paths.models_dir).resolve().parent
    whole = path.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def version(find: Callable[[str], Path | None], file: str) -> tuple[int, int] | None:
    """Changes where a file is written anew under the same name, which counts as another input; None without a file."""
    try:
        path = find(file)
        if path is None:
            return None
        facts = path.stat()
    except (OSError, ValueError):
        return None
    return facts.st_mtime_ns, facts.st_size


def input_files(*endings: str) -> list[str]:
    """The files directly in ComfyUI's input folder that end in one of `endings`."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for ending in endings for path in folder.glob(f"*{ending}") if path.is_file())


def input_path(file: str) -> Path | None:
    """The path of one of `input_files`, None for `NONE`."""
    # The name alone: what is chosen lies in the input folder whatever a hand-written workflow says.
    return None if file == NONE else Path(folder_paths.get_input_directory()) / Path(file).name


def checkpoints_root() -> Path:
    """Interrupted trainings wait here, in ComfyUI's user folder."""
    return Path(folder_paths.get_user_directory()) / "contextual_inversion" / "checkpoints"


def finished_root() -> Path:
    """What was learned and not yet saved waits here."""
    return checkpoints_root().with_name("finished")


def clear_after_a_kill() -> None:
    """Finish or remove what a program that was killed has left half written where concepts are looked for."""
    for kind in (BUNDLES, EMBEDDINGS, LORAS, CONTEXTUALIZERS, TUNING_ENCODERS):
        for folder in folder_paths.get_folder_paths(kind)[:1]:
            clear_leftovers(Path(folder))
