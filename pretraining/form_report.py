"""How well a form of the model draws: `python -m contextual_inversion.pretraining.form_report --out DIR`.

The figures of `contextual-inversion world-report`, for weights that are not bundled, and a sheet of the first pictures.
Where the form has no judge of its own, the bundled one reads its pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.inspection.contact_sheet import captioned_sheet
from ..core.inspection.world.checks import Judge, JudgeNetwork
from ..core.inspection.world.report import questions, seeds_of, tiny_autoencode, world_report
from ..core.inspection.world.world_evaluation import draw
from ..core.models.diffusers_adapter import DiffusersModel
from ..core.models.tiny import config
from ..core.models.tiny.load import TinyStableDiffusion
from ..core.models.tiny.tokenizer import tiny_tokenizer
from ..core.models.tiny.weights import read_tensors
from .forms import FORMS, Form

SHOWN, COLUMNS = 40, 8


def load_form(form: Form) -> TinyStableDiffusion:
    """The whole model of a form, frozen. Raises FileNotFoundError where a part of its own has not been trained."""
    parts = {part: form.load(part) for part in config.PARTS}
    return TinyStableDiffusion(
        tokenizer=tiny_tokenizer(), scheduler_config=dict(config.SCHEDULER), fingerprint=form.name, **parts
    )


def load_judge(form: Form) -> Judge:
    """The form's judge, or the bundled one."""
    if not form.path("judge").exists():
        return Judge()
    network = JudgeNetwork()
    network.load_state_dict(read_tensors(form.path("judge")))
    return Judge(network)


def form_report(form: Form, n: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """The report of `world_report`, and the pictures (n, 128, 128, 3) uint8 that it is about."""
    model = load_form(form)
    adapter, drawn = DiffusersModel.from_tiny(model), []

    def sampler(texts: list[str], seed: int) -> np.ndarray:
        drawn.append(draw(adapter, texts, seeds_of(seed, len(texts))))
        return drawn[-1]

    return world_report(sampler, n, seed, tiny_autoencode(model), load_judge(form)), drawn[0]


def main(arguments: list[str] | None = None) -> None:
    """Print the report as JSON and write `<form>.png`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=tuple(FORMS), default="candidate")
    parser.add_argument("--out", type=Path, required=True, help="where the sheet goes")
    parser.add_argument("--n", type=int, default=200, help="held-out captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    report, drawn = form_report(FORMS[options.form], options.n, options.seed)
    print(json.dumps({"form": options.form, **report}, indent=1))
    captions = [question.text for question in questions(options.n, options.seed)][:SHOWN]
    options.out.mkdir(parents=True, exist_ok=True)
    captioned_sheet(list(drawn[: len(captions)]), captions, COLUMNS).save(options.out / f"{options.form}.png")


if __name__ == "__main__":
    main()
