"""What a training held is free when it is over: on a GPU the next node needs the room before the collector comes by."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch._dynamo  # noqa: F401 - the first optimizer of a process imports it, which keeps that caller's frames alive
from stub_model import StubModel, pictures
from training_child import TINY_METHODS, core

from contextual_inversion.core.networks.contextualizer import (
    Contextualizer,
    ContextualizerShape,
    EncoderIdentity,
)
from contextual_inversion.core.prompts.rich import ListedPrompts
from contextual_inversion.core.training.regularizers.mlm import MLMRegularizer
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train


class Cancelled(Exception):
    pass


def held_by(run, mlm):
    """Weak references to the large things."""
    (guesser,) = mlm._encoders
    learned = {name: weakref.ref(value) for name, value in run.learner.leaves.items()}
    rest = {"pictures": run.prepared.bank.latents, "optimizer": run.learner.optimizer, "contextualizer": guesser.psi}
    return {**learned, **{name: weakref.ref(value) for name, value in rest.items()}}


def begun(model, method, end, held):
    """A training that ends in this way and goes out of scope; what it held goes into `held`."""
    psi = Contextualizer(EncoderIdentity.of(model.text_encoders["clip_l"]), ContextualizerShape(1, 2, 1))
    mlm = MLMRegularizer(psi, ListedPrompts(("a {} in the snow",)), weight=0.1, batch=2, beside_class=False)
    settings = TrainSettings(class_word="dog", steps=3, batch=2, templates=("a photo of a {}",), **TINY_METHODS[method])
    with train(model, pictures(), settings, regularizers=[core(), mlm]) as run:
        for number, _ in enumerate(run):
            if number != 1:
                continue
            held.update(held_by(run, mlm))
            if end == "closed":
                break
            if end == "cancelled":
                raise Cancelled


@pytest.mark.parametrize("end", ["finished", "closed", "cancelled"])
@pytest.mark.parametrize("method", ["ti", "second stage"])
def test_nothing_waits_for_the_garbage_collector(method, end):
    model, held = StubModel(), {}
    gc.collect()
    gc.disable()
    try:
        with suppress(Cancelled):
            begun(model, method, end, held)
        assert len(held) > 3
        assert [name for name, reference in held.items() if reference() is not None] == []
    finally:
        gc.enable()
