"""Pretrains on the stub encoder and writes the losses: run by hand, under `accelerate launch`, or as a module."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from stub_model import StubEncoder

from contextual_inversion.cli.loading import share_of
from contextual_inversion.core.training.contextualizer.pretraining import (
    Pretrained,
    PretrainSettings,
    pretrain_contextualizer,
)
from contextual_inversion.core.world.sources import WorldCaptions


def main(folder, mode):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    encoder = StubEncoder()
    processes, _ = share_of("cpu")
    settings = PretrainSettings(steps=4, batch=8, learning_rate=1e-2, preset="tiny", mode=mode, held_out=0, log_every=2)
    *_, last = pretrain_contextualizer(encoder, WorldCaptions(), settings, processes=processes)
    assert isinstance(last, Pretrained)
    tensors = {
        "losses": last.losses["loss"],
        "accuracy": last.losses["masked accuracy"],
        "mask": last.contextualizer.mask,
    }
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(tensors, Path(folder) / f"{mode}_rank{processes.rank}_of_{processes.size}.safetensors")


if __name__ == "__main__":
    for one in sys.argv[2:]:
        main(sys.argv[1], one)
