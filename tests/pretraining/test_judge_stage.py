"""The judge's stage: begun from a judge of fewer concepts, whose rows keep their places."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.core.inspection.world.checks import KIND_ROWS, KINDS, Judge, JudgeNetwork
from contextual_inversion.core.models.tiny.weights import read_tensors, read_weights, tiny_weights_path
from contextual_inversion.pretraining.forms import Form, start_path
from contextual_inversion.pretraining.judge import inherit_judge, train_judge
from contextual_inversion.pretraining.processes import Processes

GROWN = {KIND_ROWS, KIND_ROWS.replace("weight", "bias")}


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
    with pytest.raises(ValueError, match="does not fit"):
        inherit_judge(judge_of(20), old.state_dict() | new.state_dict())


def test_a_judge_says_what_it_has_not_learned() -> None:
    pictures = torch.zeros(1, 3, 128, 128)
    ten, all_of_them = Judge(judge_of(20)), Judge(judge_of(24))
    assert all_of_them.concept_score(all_of_them.read(pictures), "parrot").shape == (1,)
    with pytest.raises(ValueError, match="not learned 'parrot'"):
        ten.concept_score(ten.read(pictures), "parrot")


def test_what_a_stage_may_begin_from() -> None:
    assert start_path("flow", "judge") == tiny_weights_path("flow_judge") != start_path("bundled", "judge")
    assert start_path("flow", "vae") == start_path("bundled", "vae") == tiny_weights_path("vae")
    assert len(read_weights("flow_judge")[KIND_ROWS]) == 20


def test_a_judge_of_ten_concepts_learns_fourteen(tmp_path: Path) -> None:
    form = Form(tmp_path / "form")
    train_judge(tmp_path / "none", Processes("cpu"), steps=0, batch=2, scenes=12, form=form, start="flow")
    old, made = read_weights("flow_judge"), read_tensors(form.path("judge"))
    assert (len(made[KIND_ROWS]), len(old[KIND_ROWS])) == (len(KINDS), 20) == (24, 20)
    assert all(torch.equal(made[key][: len(value)], value) for key, value in old.items())
    assert made[KIND_ROWS][20:].abs().sum() > 0
    shutil.copytree(tmp_path / "none" / "pictures", tmp_path / "one" / "pictures")
    train_judge(tmp_path / "one", Processes("cpu"), steps=1, batch=2, scenes=12, form=form, start="flow")
    assert not torch.equal(read_tensors(form.path("judge"))[KIND_ROWS], made[KIND_ROWS])
