"""Where this pack's files live among ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

BUNDLES = "contextual_inversion"
EMBEDDINGS = "embeddings"
CONTEXTUALIZERS = "contextualizers"
TUNING_ENCODERS = "tuning_encoders"
ENDING = ".safetensors"

for _kind in (BUNDLES, CONTEXTUALIZERS, TUNING_ENCODERS):
    folder_paths.add_model_folder_path(_kind, str(Path(folder_paths.models_dir) / _kind))


def first_folder(kind: str) -> Path:
    """The folder that new files of a kind go to."""
    return Path(folder_paths.get_folder_paths(kind)[0])


def files_of(kind: str) -> list[str]:
    """The safetensors files of a kind, as paths inside its folders."""
    return [name for name in folder_paths.get_filename_list(kind) if name.endswith(ENDING)]


def checkpoints_root() -> Path:
    """Interrupted trainings wait here, in ComfyUI's user folder."""
    return Path(folder_paths.get_user_directory()) / "contextual_inversion" / "checkpoints"
