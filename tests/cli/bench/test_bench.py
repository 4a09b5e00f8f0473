"""What `bench` counts without a machine that is large enough."""

from functools import partial

import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.cli.bench.core import core_operations
from contextual_inversion.cli.bench.dual_path import peak_bytes, sd15_dual_path
from contextual_inversion.cli.bench.interleaved import step_figures
from contextual_inversion.cli.bench.mlm import sd15_operations, true_mlm_cost
from contextual_inversion.cli.bench.tuning_encoder import LIMIT_GB, tuning_memory
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.settings import TrainSettings


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_peak_is_of_what_lives_at_a_time(device):
    with peak_bytes() as peak:
        one = torch.zeros(1000, device=device)
        two = one + 1
        view = two[:10].view(2, 5)
        del one, two  # the view keeps the second
        three = torch.zeros(500, device=device)
        del view
        four = three * 2
    assert peak == [8000]
    assert len(three) == len(four)


def test_two_paths_at_true_size():
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    found = sd15_dual_path()
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
    assert 1 < found["sd15_dual_over_plain_operations"] < 1.35
    # The peak of a pass is outside of attention, where two paths are one row more.
    assert 0 < found["sd15_plain_pass_gb"] <= found["sd15_dual_pass_gb"] < 1.5 * found["sd15_plain_pass_gb"]


def test_mlm_is_measured_with_both_networks():
    found = true_mlm_cost(DiffusersModel.from_tiny(load_tiny()), side=64, batch=1, turns=2)
    assert 1 < found["sd15_mlm_short_over_ti_operations"] < found["sd15_mlm_paper_over_ti_operations"]
    assert found["sd15_mlm_short_over_ti"] > 0
    assert found["sd15_mlm_paper_over_ti_processor_time"] > 0


def test_seldom_costs_its_share_of_the_same():
    """By count, at true size and in the steps that are run: the bundled model's, of pictures that are encoded."""
    assert 1.7 < core_operations(4) < 1.8
    assert 1.3 < core_operations(4, 1) < 1.4
    for counted in (partial(core_operations, 4), partial(sd15_operations, 4, 25)):
        for every in (2, 3):
            assert counted(every=every) - 1 == pytest.approx((counted() - 1) / every)
    model, pictures = DiffusersModel.from_tiny(load_tiny()), torch.rand(4, 64, 64, 3)
    found = []
    for every in (1, 2):
        settings = TrainSettings("dog", steps=4 + every, batch=4, log_every=2, resolution=64, regularize_every=every)
        one = CoReRegularizer(["a {} in the snow"])
        found.append(step_figures("core", model, settings, pictures, one, turns=2, steps=2)[0])
    always, seldom = (one["core_over_ti_operations"] for one in found)
    assert seldom - 1 == pytest.approx((always - 1) / 2)


def test_predicting_and_tuning_stay_under_the_limit_at_true_size():
    plain, checkpointed = (tuning_memory(gradient_checkpointing=on) for on in (False, True))
    dual = tuning_memory(gradient_checkpointing=False, two_paths=True)
    for parts in (plain, checkpointed, dual):
        assert parts["total"] == pytest.approx(
            sum(value for key, value in parts.items() if key not in ("total", "limit"))
        )
        assert parts["total"] < LIMIT_GB
    assert checkpointed["kept_for_backward"] < plain["kept_for_backward"] < dual["kept_for_backward"]
    # SD 1.5's UNet has 859,520,964 weights.
    assert plain["unet"] == 2 * 859_520_964 / 1e9
