"""The judge's stage: begun from a judge of fewer concepts, whose rows keep their places."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.core.form import BUNDLED, CANDIDATE, VARIABLE
from contextual_inversion.core.inspection.world.checks import EVERY_KIND, KIND_ROWS, KINDS, Judge, JudgeNetwork
from contextual_inversion.core.models.tiny.weights import read_weights
from contextual_inversion.pretraining.forms import FORMS, require_world, start_path
from contextual_inversion.pretraining.judge import inherit_judge

GROWN = {KIND_ROWS, KIND_ROWS.replace("weight", "bias")}
CHILD = """
import dataclasses, shutil, sys
from pathlib import Path
import torch
from contextual_inversion.core.inspection.world.checks import KINDS
from contextual_inversion.core.models.tiny.weights import read_tensors, read_weights
from contextual_inversion.pretraining.forms import FORMS
from contextual_inversion.pretraining.judge import train_judge
from contextual_inversion.pretraining.processes import Processes

torch.set_num_threads(1)
folder = Path(sys.argv[1])
form = dataclasses.replace(FORMS["candidate"], folder=folder / "form")
form.folder.mkdir()
shutil.copy(FORMS["candidate"].path("vae"), form.path("vae"))
FORMS["candidate"] = form
train_judge(folder / "none", Processes("cpu"), steps=0, batch=2, scenes=12, start="flow")
old, made = read_weights("flow_judge"), read_tensors(form.path("judge"))
assert len(made["heads.kind.weight"]) == len(KINDS) == 24 and len(old["heads.kind.weight"]) == 20
assert all(torch.equal(made[key][: len(value)], value) for key, value in old.items())
assert made["heads.kind.weight"][20:].abs().sum() > 0
shutil.copytree(folder / "none" / "pictures", folder / "one" / "pictures")
train_judge(folder / "one", Processes("cpu"), steps=1, batch=2, scenes=12, start="candidate")
after = read_tensors(form.path("judge"))
assert not torch.equal(after["heads.kind.weight"], made["heads.kind.weight"])
print("grown")
"""


def judge_of(kinds: int) -> JudgeNetwork:
    torch.manual_seed(kinds)
    return JudgeNetwork(kinds)


def test_known_kinds_keep_their_rows_and_new_ones_are_fresh() -> None:
    old, new = judge_of(20), judge_of(24)
    fresh = {key: value.clone() for key, value in new.state_dict().items()}
    inherit_judge(new, old.state_dict())
    for key, value in new.state_dict().items():
        if key in GROWN:
            assert torch.equal(value[:20], old.state_dict()[key])
            assert torch.equal(value[20:], fresh[key][20:])
        else:
            assert torch.equal(value, old.state_dict()[key])
    assert EVERY_KIND[: len(KINDS)] == KINDS
    with pytest.raises(ValueError, match="does not fit"):
        inherit_judge(judge_of(20), old.state_dict() | new.state_dict())


def test_a_judge_says_what_it_has_not_learned() -> None:
    pictures = torch.zeros(1, 3, 128, 128)
    ten, all_of_them = Judge(judge_of(20)), Judge(judge_of(24))
    assert all_of_them.concept_score(all_of_them.read(pictures), "parrot").shape == (1,)
    with pytest.raises(ValueError, match="not learned 'parrot'"):
        ten.concept_score(ten.read(pictures), "parrot")


def test_what_a_stage_may_begin_from() -> None:
    assert start_path("flow", "judge") == FORMS[BUNDLED].path("flow_judge")
    assert start_path(CANDIDATE, "vae") == FORMS[CANDIDATE].path("vae") != start_path(BUNDLED, "vae")
    assert len(read_weights("flow_judge")[KIND_ROWS]) == 20


def test_a_judge_is_trained_in_the_world_of_its_form(tmp_path: object) -> None:
    require_world(BUNDLED)
    with pytest.raises(ValueError, match=f"set {VARIABLE}={CANDIDATE}"):
        require_world(CANDIDATE)
    call = [sys.executable, "-c", CHILD, str(tmp_path)]
    ran = subprocess.run(call, env={**os.environ, VARIABLE: CANDIDATE}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("grown\n")
