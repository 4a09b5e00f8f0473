"""Tiny encoders on the disk, loaded once, and pictures of many shapes."""

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from contextual_inversion.core.inspection.evaluation import load_clip, load_dino


def beside(name: str):
    """The module in this folder."""
    spec = importlib.util.spec_from_file_location(f"evaluation_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """`clip_model`, `dino_model` as transformers has them, `clip`, `dino` as we load them, `root` with both folders."""
    made, root = beside("random_encoders"), tmp_path_factory.mktemp("clip_vision")
    clip_model = made.save_clip(root / "clip-vit-base-patch32")
    dino_model = made.save_dino(root / "dino-vits16")
    return SimpleNamespace(
        root=root, clip_model=clip_model, dino_model=dino_model, clip=load_clip(folders=[root]),
        dino=load_dino(folders=[root]),
    )  # fmt: skip


@pytest.fixture(scope="session")
def processors():
    """transformers' Pillow processors of CLIP and of ViT, whatever this version calls them."""
    import transformers

    def find(name):
        module = "clip" if name.startswith("CLIP") else "vit"
        for ending in (f"image_processing_pil_{module}", f"image_processing_{module}"):
            try:
                found = importlib.import_module(f"transformers.models.{module}.{ending}")
            except ModuleNotFoundError:
                continue
            return getattr(found, f"{name}Pil", None) or getattr(found, name)
        raise AssertionError(f"transformers {transformers.__version__} has no {name}")

    return find("CLIPImageProcessor"), find("ViTImageProcessor")


@pytest.fixture(scope="session")
def draw_picture():
    """Makes a uint8 picture with large shapes, so that resizing does not wash everything out."""

    def draw(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return coarse.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width].copy()

    return draw


@pytest.fixture
def folders(tmp_path, draw_picture):
    """`dataset`, `generated` and `masks` of two subjects, two prompts and three pictures each."""
    return beside("dataset_folders").make_dataset(tmp_path / "protocol", draw_picture)


@pytest.fixture
def write_picture():
    """Saves a picture as a file, with the folders that it needs."""
    return beside("dataset_folders").write
