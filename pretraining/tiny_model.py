"""The training command: `python -m contextual_inversion.pretraining.tiny_model --stage all --out DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..core.models.tiny.weights import FOLDER
from .forms import STARTS, Form
from .processes import Processes

STAGES = ("vae", "encoders", "unet", "judge", "transformer")


def main(arguments: list[str] | None = None) -> None:
    """Train one stage or all of them; a stage that was interrupted goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, rendered pictures and logs go here")
    parser.add_argument("--device", default=None, help="default: a GPU if there is one")
    parser.add_argument("--steps", type=int, default=None, help="steps of the stage instead of its own number")
    parser.add_argument("--batch", type=int, default=None, help="scenes of a step, over all processes, of unet")
    parser.add_argument("--scenes", type=int, default=None, help="scenes that unet practises on")
    parser.add_argument("--rate", type=float, default=None, help="learning rate of unet")
    parser.add_argument("--decay", type=float, default=None, help="share of unet's steps in which the rate falls to 0")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of each process")
    parser.add_argument(
        "--weights", type=Path, default=FOLDER, help="where weights are written, and read before the bundled ones"
    )
    parser.add_argument(
        "--begin",  # torchrun takes `--start` for an abbreviation of its own options, also behind the module
        choices=STARTS,
        default="bundled",
        help="first weights of VAE, UNet and judge; flow: the flow matching model's judge",
    )
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    processes, form = Processes(options.device), Form(options.weights)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        chosen = {} if options.steps is None else {"steps": options.steps}
        if stage == "vae":
            from .vae import train_vae

            train_vae(options.out, processes, form=form, start=options.begin, **chosen)
        elif stage == "encoders":
            from .encoders import train_encoders

            train_encoders(options.out, processes, form=form, **chosen)
        elif stage == "unet":
            from .unet import train_unet

            own = {name: getattr(options, name) for name in ("batch", "scenes", "rate", "decay")}
            chosen |= {name: value for name, value in own.items() if value is not None}
            train_unet(options.out, processes, form=form, start=options.begin, **chosen)
        elif stage == "transformer":
            from .transformer import train_transformer

            train_transformer(options.out, processes, form=form, **chosen)
        else:
            from .judge import train_judge

            train_judge(options.out, processes, form=form, start=options.begin, **chosen)


if __name__ == "__main__":
    main()
