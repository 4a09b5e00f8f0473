"""Train in processes of their own, each of which dies by SIGKILL at the n-th time something happens.

python training_child.py '[[CHECKPOINTS, "predict" or "replace", N, METHOD], ...]'

One after another; a process is a fork, so that PyTorch is imported once. Prints a JSON list of
[exit status, checkpoints that are there then].
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from stub_model import StubModel, pictures

from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.run.checkpoint import checkpoints_in
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
    "second stage, rank by timestep": {"method": "refine", "rank": 4, "least_rank": 1},
    "second stage, some layers": {"method": "refine", "rank": 2, "only_layers": ("attn2.to_v", "attn2.to_q")},
    "second stage, all weights": {"method": "refine-all"},
    "word and LoRA": {"method": "word-lora", "rank": 2, "weight_rate": 1e-3},
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


def train_and_die(folder, what, number, method):
    model = StubModel()
    if what == "predict":
        object.__setattr__(model, "predict", deadly(model.predict, number))
    else:
        os.replace = deadly(os.replace, number)
    resume = folder if checkpoints_in(folder) else None
    with train(model, pictures(), settings(folder, method), regularizers=[core()], resume=resume) as run:
        for _ in run:
            pass


def in_a_fork(function, *arguments):
    """The exit status: 0, 1 after an error, or the signal's number below 0."""
    process = os.fork()
    if process == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = []
    for name, what, number, method in json.loads(sys.argv[1]):
        status = in_a_fork(train_and_die, Path(name), what, number, method)
        found.append([status, len(checkpoints_in(Path(name)))])
    print(json.dumps(found))
