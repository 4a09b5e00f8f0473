"""The judge, and pictures as it knows them: through the model's VAE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from contextual_inversion.core.inspection.world.checks import Judge
from contextual_inversion.core.inspection.world.report import tiny_autoencode
from contextual_inversion.core.models.tiny.load import load_part


class Vae:
    """What `tiny_autoencode` needs of a model."""

    def __init__(self) -> None:
        self.vae = load_part("vae")


@pytest.fixture(scope="session")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="session")
def autoencode() -> Callable[[np.ndarray], np.ndarray]:
    pytest.importorskip("diffusers")
    return tiny_autoencode(Vae())
