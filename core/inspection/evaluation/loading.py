"""Find CLIP and DINO on this machine. Nothing is ever downloaded: an error says which file goes where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from .defaults import CLIP, DINO
from .encoders import ClipEncoder, DinoEncoder
from .preprocessing import FILE as PREPROCESSING_FILE
from .preprocessing import HALF, Preprocessing, read_preprocessing

BUNDLED = "bundled"
"""The tiny model's own pair of encoders, in place of CLIP."""

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
DINO_FAMILIES = ("vit", "dinov2", "dinov2_with_registers")
"""`model_type`s of config.json whose first output token is the class token."""


class EncoderNotFoundError(FileNotFoundError):
    """No such encoder on this machine, or files of it are missing. The message says which file goes where."""


def load_clip(name: str | Path = CLIP, folders: Sequence[Path] = ()) -> ClipEncoder:
    """CLIP from the folder `name`, from a folder of that name inside `folders`, or from the local Hugging Face cache;
    `BUNDLED` is the tiny model's. Float32, on the CPU, frozen.

    Raises EncoderNotFoundError where it is not there whole, ValueError where it is another kind of model.
    """
    if str(name) == BUNDLED:
        return bundled_clip()
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    folder = find_encoder(name, folders)
    _require_kind(folder, ("clip",), f"CLIP, such as {CLIP}")
    if not (folder / "tokenizer.json").is_file():
        _require_files(folder, ("vocab.json", "merges.txt"))
    with _quiet():
        pictures = _frozen(CLIPVisionModelWithProjection.from_pretrained(folder, **_OPTIONS))
        text = _frozen(CLIPTextModelWithProjection.from_pretrained(folder, **_OPTIONS))
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return ClipEncoder(folder_name(name, folder), pictures, text, tokenizer, read_preprocessing(folder))


def load_dino(name: str | Path = DINO, folders: Sequence[Path] = ()) -> DinoEncoder:
    """DINO from the places that `load_clip` names. Float32, on the CPU, frozen.

    Raises EncoderNotFoundError where it is not there whole, ValueError where it is another kind of model.
    """
    from transformers import AutoModel

    folder = find_encoder(name, folders)
    kind = _require_kind(folder, DINO_FAMILIES, f"a DINO vision transformer, such as {DINO}")
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    with _quiet():
        network = _frozen(AutoModel.from_pretrained(folder, **_OPTIONS, **options))
    return DinoEncoder(folder_name(name, folder), network, read_preprocessing(folder))


def bundled_clip(vocabulary: str | None = None) -> ClipEncoder:
    """The tiny model's text and image encoder, which were trained against each other as CLIP's are. It knows the drawn
    world only, and its figures cannot be compared with those of CLIP ViT-B/32. `vocabulary` as in `tiny_tokenizer`."""
    from ...models.tiny import config, tiny_tokenizer
    from ...models.tiny.load import load_part

    side = config.IMAGE_ENCODER["image_size"]
    # Means of 2 x 2 pixels, as in its training; other sizes are averaged the same way.
    prepare = Preprocessing(size=(side, side), resample=Image.Resampling.BOX, mean=HALF, std=HALF)
    return ClipEncoder(
        BUNDLED, load_part("image_encoder"), load_part("text_encoder"), tiny_tokenizer(vocabulary), prepare
    )


def find_encoder(name: str | Path, folders: Sequence[Path] = ()) -> Path:
    """The folder of an encoder: a path, a folder of that name (or of its last part) in `folders`, or one in the local
    Hugging Face cache. Raises EncoderNotFoundError, saying which files go where."""
    short = str(name).replace("\\", "/").rstrip("/").rpartition("/")[2]
    places = [*(Path(root) / part for root in folders for part in dict.fromkeys((str(name), short))), Path(name)]
    found = next((place for place in places if place.is_dir()), None) or _cached(str(name))
    if found is None:
        home = Path(folders[0]) / short if folders else Path(name)
        raise EncoderNotFoundError(
            f"{name} is not on this machine, nor in its Hugging Face cache, and nothing is downloaded for you. Put "
            f"config.json, {WEIGHTS}, {PREPROCESSING_FILE} and, for CLIP, tokenizer.json (or vocab.json and "
            f"merges.txt) into {home}, or choose another encoder or none"
        )
    _require_files(found, ("config.json", PREPROCESSING_FILE))
    if not (found / WEIGHTS).is_file() and not (found / SHARDS).is_file():
        raise EncoderNotFoundError(
            f"{found} has no {WEIGHTS}. A pytorch_model.bin is a pickle, which can run code when it is opened, and is "
            f'not read; where you trust it, convert it once: python -c "from transformers import AutoModel as m; '
            f"m.from_pretrained('{found}').save_pretrained('{found}')\""
        )
    return found


def encoders_in(folders: Sequence[Path], kinds: Sequence[str]) -> list[str]:
    """The names of the folders in `folders` that hold a config.json with one of the `model_type`s `kinds`."""
    return sorted(
        {
            config.parent.name
            for root in folders
            for config in Path(root).glob("*/config.json")
            if _kind_of(config.parent) in kinds
        }
    )


def folder_name(name: str | Path, folder: Path) -> str:
    """What a report calls the encoder: the name it was asked for, or its folder's, never a path."""
    return folder.name if Path(name).is_absolute() or Path(name).is_dir() else str(name)


_OPTIONS: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}


def _cached(name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json")
    except (ImportError, ValueError):  # the name of no repository
        return None
    return Path(config).parent if isinstance(config, str) else None


def _require_files(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise EncoderNotFoundError(f"{', '.join(missing)} missing in {folder}")


def _require_kind(folder: Path, kinds: Sequence[str], wanted: str) -> str:
    kind = _kind_of(folder)
    if kind not in kinds:
        raise ValueError(f"{folder} holds a model of type {kind!r}; wanted is {wanted}")
    return kind


def _kind_of(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _frozen(module: Any) -> Any:
    return module.float().requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Each tower is read from the file that holds both; transformers would list the other one as unexpected."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
