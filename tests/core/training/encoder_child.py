"""Pretrains a small tuning-encoder and writes losses and weights: alone, or one process of `accelerate launch`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tuning_parts import images, model, settings, source

from contextual_inversion.cli.loading import share_of
from contextual_inversion.core.training.one_picture.pretraining import PretrainedEncoder, pretrain_encoder


def main(folder):
    torch.set_num_threads(1)
    processes, _ = share_of("cpu")
    *_, last = pretrain_encoder(
        model(), images(), source(), settings(steps=3, contrastive=0.5, learning_rate=1e-3), processes=processes
    )
    assert isinstance(last, PretrainedEncoder)
    tensors = {f"losses.{name}": value for name, value in last.losses.items()}
    tensors |= {name: value.detach().contiguous() for name, value in last.encoder.state_dict().items()}
    save_file(tensors, Path(folder) / f"rank{processes.rank}_of_{processes.size}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
