"""The contextualizer's architecture, size and starting weights: METHODS.md 2.1 and 2.2."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import equal_but_for_rounding
from torch import nn

from contextual_inversion.core.networks.contextualizer import (
    PRESETS,
    Contextualizer,
    ContextualizerShape,
    EncoderIdentity,
    initialise,
    mask_embedding,
)


def identity(width=32, length=12, vocabulary=50):
    return EncoderIdentity("clip_l", "0123456789abcdef", width, length, vocabulary)


def initialised(width=32, seed=0, **keywords):
    table = 0.3 * torch.randn(50, width, generator=torch.Generator().manual_seed(9))
    psi = Contextualizer(identity(width), **keywords)
    return initialise(psi, table, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "millions"), [(768, 61.7), (1024, 92.7)])
def test_the_paper_preset_has_the_size_that_the_methods_give(width, millions):
    with torch.device("meta"):
        psi = Contextualizer(identity(width, 77, 49408))
    assert psi.classes == 49409
    numbers = sum(value.numel() for name, value in psi.named_parameters() if name != "mask")
    assert round(numbers / 1e6, 1) == millions
    assert (len(psi.attentions), len(psi.feed_forwards)) == (4, 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_m1_and_m2_written_with_torchs_own_layers(preset):
    torch.manual_seed(0)
    psi = initialised(shape=PRESETS[preset]).double()
    for value in psi.parameters():
        nn.init.normal_(value, std=0.2)  # biases and scales as well
    outputs = torch.randn(3, 12, 32, dtype=torch.float64)
    x = outputs + psi.positions
    for stage, (attention, norm) in enumerate(zip(psi.attentions, psi.norms, strict=True)):
        reference = nn.MultiheadAttention(32, psi.shape.heads, batch_first=True).double()
        reference.load_state_dict(
            {
                "in_proj_weight": attention.in_proj.weight,
                "in_proj_bias": attention.in_proj.bias,
                "out_proj.weight": attention.out_proj.weight,
                "out_proj.bias": attention.out_proj.bias,
            }
        )
        x = nn.functional.layer_norm(x + reference(x, x, x)[0], (32,), norm.weight, norm.bias)
        if stage < len(psi.attentions) - 1:
            forward = psi.feed_forwards[stage]
            x = (x @ forward.w1.weight.T + forward.w1.bias).clamp(min=0) @ forward.w2.weight.T + forward.w2.bias
    expected = x @ psi.output.weight.T + psi.output.bias
    torch.testing.assert_close(psi(outputs), expected, rtol=1e-10, atol=1e-10)


def test_logits_have_a_class_for_every_token_and_the_mask():
    assert initialised()(torch.randn(2, 12, 32)).shape == (2, 12, 51)
    assert initialised()(torch.randn(2, 7, 32)).shape == (2, 7, 51)  # a shorter row takes the first positions


def test_positions_selected_before_the_output_layer_are_those_selected_after_it():
    psi, outputs = initialised(), torch.randn(3, 12, 32)
    positions = torch.tensor([0, 5, 13, 35])
    torch.testing.assert_close(psi(outputs, positions), psi(outputs).flatten(0, 1)[positions])
    assert psi(outputs, positions[:0]).shape == (0, 51)


def test_every_position_looks_at_every_other_in_both_directions():
    psi = initialised()
    outputs = torch.randn(1, 12, 32, requires_grad=True)
    for place in (0, 6, 11):
        (gradient,) = torch.autograd.grad(psi(outputs)[0, place].square().sum(), outputs)
        assert (gradient[0].abs().sum(dim=-1) > 0).all()


def test_rows_of_a_batch_do_not_see_each_other():
    psi, outputs = initialised(), torch.randn(3, 12, 32)
    equal_but_for_rounding(psi(outputs)[1:2], psi(outputs[1:2]))


def test_starting_weights_have_the_spreads_that_the_methods_give():
    d = 256
    psi = initialised(width=d)

    def spread(value):
        return value.detach().std().item()

    assert all((module.bias == 0).all() for module in psi.modules() if isinstance(module, nn.Linear))
    assert spread(psi.positions) == pytest.approx(0.02, rel=0.05)
    for attention in psi.attentions:
        assert spread(attention.in_proj.weight) == pytest.approx(d**-0.5 / 4, rel=0.02)
        assert spread(attention.out_proj.weight) == pytest.approx(d**-0.5, rel=0.02)
    assert spread(psi.output.weight) == pytest.approx(768**-0.5, rel=0.03)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in psi.norms)


def test_the_mask_row_has_the_tables_average_l1_norm():
    table = torch.randn(500, 64, generator=torch.Generator().manual_seed(1))
    row = mask_embedding(table, torch.Generator().manual_seed(2))
    assert row.abs().sum().item() == pytest.approx(table.abs().sum(dim=1).mean().item(), rel=1e-5)


def test_starting_weights_come_from_the_generator_alone():
    before = torch.get_rng_state()
    one = initialised()
    assert torch.equal(torch.get_rng_state(), before)  # and move nobody else's random numbers
    torch.rand(7)
    same, other = initialised(), initialised(seed=1)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.mask, other.mask)


def test_a_sparse_output_layer_is_rows_of_the_full_one():
    full, ids = initialised(), [3, 7, 48, 20]
    sparse = Contextualizer(identity(), token_ids=ids)
    state = full.state_dict()
    for name in ("output.weight", "output.bias"):
        state[name] = state[name][[*ids, 50]]
    sparse.load_state_dict(state)
    outputs = torch.randn(2, 12, 32)
    torch.testing.assert_close(sparse(outputs), full(outputs)[..., [*ids, 50]])
    assert sparse.rows[ids].tolist() == [0, 1, 2, 3]
    assert int((sparse.rows >= 0).sum()) == 4
    assert full.rows.tolist() == list(range(50))


@pytest.mark.parametrize("ids", [[], [1, 1], [50], [-1, 2]])
def test_impossible_token_ids_are_errors(ids):
    with pytest.raises(ValueError, match="token ids"):
        Contextualizer(identity(), token_ids=ids)


def test_heads_have_to_divide_the_width():
    with pytest.raises(ValueError, match="heads"):
        Contextualizer(identity(width=30))
    with pytest.raises(ValueError, match="at least one"):
        ContextualizerShape(attentions=0)


def test_a_contextualizer_of_one_attention_has_no_feed_forward():
    psi = initialised(shape=ContextualizerShape(attentions=1))
    assert len(psi.feed_forwards) == 0
    assert math.isfinite(psi(torch.randn(1, 12, 32)).sum().item())
