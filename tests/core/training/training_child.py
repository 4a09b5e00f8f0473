"""Train in a process of its own and die by SIGKILL at the n-th time something happens.

python training_child.py CHECKPOINTS (predict|replace|never) N [METHOD]
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from stub_model import StubModel, pictures

from contextual_inversion.core.training.checkpoint import checkpoints_in
from contextual_inversion.core.training.core_regularizer import CoReRegularizer
from contextual_inversion.core.training.settings import Augmentation, TrainSettings
from contextual_inversion.core.training.trainer import train

TINY_METHODS = {
    "ti": {"method": "ti"},
    "xti": {"method": "xti"},
    "xti-blocks": {"method": "xti-blocks", "vectors": 2},
    "custom diffusion": {"method": "custom-diffusion", "identifier": "sks"},
    "custom diffusion, low rank": {"method": "custom-diffusion", "identifier": "sks", "rank": 2},
    "dreambooth": {"method": "dreambooth", "identifier": "sks", "weight_rate": 1e-3},
    "dreambooth, low rank": {"method": "dreambooth-lora", "identifier": "sks"},
    "second stage": {"method": "refine", "rank": 2},
    "second stage, all weights": {"method": "refine-all"},
}
"""What can be trained, as keywords for the settings of a training on the stub model."""


def settings(folder, method="ti"):
    return TrainSettings(
        **TINY_METHODS[method],
        class_word="dog",
        steps=12,
        batch=2,
        gradient_accumulation=2,
        norm_mode="core_window",
        ema=0.9,
        schedule="cosine",
        templates=("a photo of a {}", "the {}"),
        augmentation=Augmentation(bank=2),
        checkpoint_dir=folder,
        checkpoint_every=2,
        log_every=3,
    )


def core():
    return CoReRegularizer(["a {} in the snow", "a {} at sea"], embedding_weight=0.1, attention_weight=1.0)


def deadly(function, number):
    """`function`, that kills this process the `number`-th time it is called."""
    calls = 0

    def call(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return call


if __name__ == "__main__":
    folder, what, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    method = sys.argv[4] if len(sys.argv) > 4 else "ti"
    torch.set_num_threads(1)
    model = StubModel()
    if what == "predict":
        object.__setattr__(model, "predict", deadly(model.predict, number))
    elif what == "replace":
        os.replace = deadly(os.replace, number)
    resume = folder if checkpoints_in(folder) else None
    with train(model, pictures(), settings(folder, method), regularizers=[core()], resume=resume) as run:
        for _ in run:
            pass
