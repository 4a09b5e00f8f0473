"""The stub model, and a training run in one call."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "regularizers"))
sys.path.insert(0, str(Path(__file__).parent))

from stub_model import StubModel, pictures

from contextual_inversion.core.training.run.events import Finished
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train


@pytest.fixture
def model():
    return StubModel()


@pytest.fixture
def run():
    """run(model, steps=.., ...) trains to the end and returns `Finished`; keywords are settings, or train's own."""

    def finish(model, images=None, **keywords):
        outside = {key: keywords.pop(key) for key in ("regularizers", "masks", "resume", "initial") if key in keywords}
        keywords = {"class_word": "dog", "steps": 6, "batch": 3, "log_every": 2, **keywords}
        images = pictures() if images is None else images
        with train(model, images, TrainSettings(**keywords), **outside) as running:
            *_, last = running
        assert isinstance(last, Finished)
        return last

    return finish
