"""What commands share: the device, models, networks and prompts that their options name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ..core.models.diffusers_adapter import DiffusersModel
    from ..core.models.diffusers_text import DiffusersTextEncoder
    from ..core.models.image_encoder import ImageEncoder
    from ..core.networks.contextualizer import Contextualizer
    from ..core.networks.tuning_encoder import TuningEncoder
    from ..core.prompts.sets import PromptSet
    from ..core.training.run.processes import Processes

BUNDLED = "tuning_encoder"


def chosen_device(name: str | None) -> torch.device:
    """The device called `name`, or the GPU where there is one and none is named.

    Raises ValueError where PyTorch has no such device.
    """

    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA asserts
        raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def share_of(device: str | None) -> tuple[Processes, torch.device]:
    """This process among those of `accelerate launch`, and its device; alone outside of it."""

    import torch
    from accelerate import PartialState

    from ..core.training.run.processes import Processes

    # Without saying so, accelerate leaves processes on a machine without a GPU alone, each with the whole batch.
    state = PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
    if int(os.environ.get("WORLD_SIZE", "1")) != state.num_processes:
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes were launched, accelerate sees {state.num_processes}")
    if state.num_processes == 1:
        return Processes(), chosen_device(device or str(state.device))

    def add(value: torch.Tensor) -> torch.Tensor:
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    return Processes(state.process_index, state.num_processes, add), state.device


def load_model(name: str | Path, device: str | None) -> DiffusersModel:
    """The bundled tiny model, or the folder of a diffusers pipeline."""
    from ..core.models.diffusers_adapter import DiffusersModel

    place = chosen_device(device)
    if name == "tiny":
        from ..core.models.tiny import load_tiny

        return DiffusersModel.from_tiny(load_tiny(), device=place)
    return DiffusersModel.from_pipeline(name, device=place)


def load_text_encoder(model: str | Path, name: str | None) -> DiffusersTextEncoder:
    """One text encoder of the bundled model or of a pipeline's folder. Raises ValueError that lists the choices."""
    from ..core.models.diffusers_text import DiffusersTextEncoder

    if model == "tiny":
        from ..core.models.tiny.load import load_part
        from ..core.models.tiny.tokenizer import tiny_tokenizer

        encoders = {"clip_l": DiffusersTextEncoder("clip_l", load_part("text_encoder"), tiny_tokenizer())}
    else:
        from ..core.models.diffusers_adapter import DiffusersModel

        encoders = dict(DiffusersModel.from_pipeline(model).text_encoders)
    if name is None and len(encoders) == 1:
        return next(iter(encoders.values()))
    if name not in encoders:
        raise ValueError(f"choose one of the model's text encoders with --encoder: {', '.join(encoders)}")
    return encoders[name]


def load_image_encoder(model: str | Path, folder: Path | None, device: torch.device) -> ImageEncoder:
    """The one in `folder`, the tiny model's own, or the one of a pipeline's folder.

    Raises FileNotFoundError that says what to give where a pipeline has none.
    """
    from ..core.models.image_encoder import ImageEncoder

    if folder is not None:
        return ImageEncoder.from_folder(folder, device=device)
    if model == "tiny":
        return ImageEncoder.tiny(device=device)
    own = Path(model) / "image_encoder"
    if not own.is_dir():
        raise FileNotFoundError(f"{model} has no image encoder; name a folder of a CLIP vision model, --image-encoder")
    return ImageEncoder.from_folder(own, device=device)


def load_tuning_encoder(model: str | Path, file: Path | None) -> TuningEncoder:
    """The encoder in `file`, or the bundled one of the tiny model.

    Raises FileNotFoundError that says how to get one where there is none.
    """
    from ..core.files.tuning_encoder import load_tuning_encoder as read
    from ..core.models.tiny.weights import tiny_weights_path

    if file is not None:
        return read(file)
    bundled = tiny_weights_path(BUNDLED)
    if model != "tiny" or not bundled.exists():
        raise FileNotFoundError("name a tuning-encoder of this model, --encoder; `pretrain-encoder` makes one")
    return read(bundled)


def load_contextualizers(files: Sequence[Path]) -> list[Contextualizer]:
    """Contextualizer files, or "bundled" for the tiny model's."""
    from ..core.files.contextualizer import load_contextualizer
    from ..core.models.tiny.contextualizer import load_contextualizer as load_bundled

    return [load_bundled() if str(file) == "bundled" else load_contextualizer(file) for file in files]


def prompt_set(name: str) -> PromptSet:
    """A built-in set by name ("inanimate", "rich pets", ...), else a text file."""
    from ..core.prompt_sets import rich_set, rich_sets
    from ..core.prompts.sets import built_in_set, built_in_sets, prompt_set_from_file

    if name.startswith("rich ") and name.removeprefix("rich ") in rich_sets():
        return rich_set(name.removeprefix("rich "))
    return built_in_set(name) if name in built_in_sets() else prompt_set_from_file(Path(name))
