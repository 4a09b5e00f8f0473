"""The masking rule and the masked cross-entropies: METHODS.md 2.3, 2.4, 2.6 and the checks of 2.9."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths import mlm

LENGTH, BOS, EOT, PAD, VOCABULARY = 16, 40, 41, 41, 42


@st.composite
def rows(draw):
    """ids (L,) of BOS, words, EOT, padding; and protected positions among the words."""
    words = draw(st.lists(st.integers(0, BOS - 1), min_size=1, max_size=LENGTH - 2))
    ids = np.full(LENGTH, PAD)
    ids[0], ids[1 : 1 + len(words)] = BOS, words
    protected = draw(st.lists(st.integers(1, len(words)), max_size=4))
    return ids, len(words), protected


@given(rows())
def test_only_free_words_are_maskable(row):
    ids, words, protected = row
    allowed = mlm.maskable_positions(ids, EOT, protected)
    assert set(np.flatnonzero(allowed)) == set(range(1, words + 1)) - set(protected)


def test_a_row_without_eot_or_a_position_outside_it_is_an_error():
    with pytest.raises(ValueError, match="holds EOT"):
        mlm.maskable_positions([BOS, 1, 2], EOT)
    for position in (-1, 4):
        with pytest.raises(ValueError, match="outside"):
            mlm.maskable_positions([BOS, 1, EOT, PAD], EOT, [position])


@given(rows(), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_rate_masks_more_and_nothing_else_is_ever_masked(row, seed, rho, other):
    ids, _, protected = row
    allowed = mlm.maskable_positions(ids, EOT, protected)
    uniform = np.random.default_rng(seed).random(LENGTH)
    few, many = (mlm.draw_mask(uniform, allowed, rate) for rate in sorted((rho, other)))
    assert not (few & ~many).any()
    assert not (many & ~allowed).any()
    assert (mlm.draw_mask(uniform, allowed, 1.0) == allowed).all()
    assert not mlm.draw_mask(uniform, allowed, 0.0).any()


@pytest.mark.parametrize("rho", [0.07, 0.15, 0.5])
def test_ten_thousand_draws_hit_the_rate_and_spare_the_specials(backend, rho):
    ids = np.array([BOS, 3, 9, 8, 5, 6, 7, EOT, PAD, PAD])
    allowed = mlm.maskable_positions(ids, EOT, protected=[2, 3])  # the concept and its class word
    uniform = np.random.default_rng(0).random((10_000, ids.size))
    masked = backend.numpy(
        mlm.draw_mask(backend.array(uniform), backend.array(np.broadcast_to(allowed, uniform.shape)), rho)
    )
    assert not masked[:, [0, 2, 3, 7, 8, 9]].any()
    draws = 10_000 * allowed.sum()
    assert abs(masked[:, allowed].mean() - rho) < 3 * np.sqrt(rho * (1 - rho) / draws)
    # independently: the number of masks in a row is binomial
    counts = masked.sum(axis=1)
    assert counts.var() == pytest.approx(allowed.sum() * rho * (1 - rho), rel=0.1)


def test_a_rate_that_is_no_probability_is_an_error():
    with pytest.raises(ValueError, match="probability"):
        mlm.draw_mask(np.zeros(3), np.ones(3, bool), 1.5)


def plain_cross_entropy(logits, targets):
    """The textbook formula in float64."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets >= 0, -np.log(chosen), 0)


def problem(seed, count=24, classes=11):
    rng = np.random.default_rng(seed)
    logits, targets = 3 * rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    masked = rng.random(count) < 0.4
    return logits, targets, masked


@pytest.mark.parametrize("seed", range(3))
def test_the_cross_entropy_is_minus_the_log_of_the_softmax(backend, seed):
    logits, targets, masked = problem(seed)
    targets = np.where(masked, targets, mlm.IGNORED)
    ours = backend.numpy(mlm.cross_entropy(backend.array(logits), backend.array(targets)))
    np.testing.assert_allclose(ours, plain_cross_entropy(logits, targets), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_huge_logits_stay_finite_in_any_precision(autograd, dtype):
    logits = np.array([[3e4, -3e4, 0.0], [-3e4, -3e4, 3e4]])
    function = lambda x: mlm.cross_entropy(x, autograd.array(np.array([0, 1]))).sum()  # noqa: E731
    value = autograd.numpy(mlm.cross_entropy(autograd.array(logits, dtype), autograd.array(np.array([0, 1]))))
    np.testing.assert_allclose(value, [0, 6e4], rtol=1e-2)
    assert np.isfinite(autograd.gradient(function, logits)[0]).all()


def test_shifting_all_logits_of_a_position_changes_nothing(backend):
    logits, targets, _ = problem(5)
    shift = 100 * np.random.default_rng(6).normal(size=(len(logits), 1))
    one, two = (
        backend.numpy(mlm.cross_entropy(backend.array(x), backend.array(targets))) for x in (logits, logits + shift)
    )
    np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-10)


def losses(xp_array, entropy, masked):
    return {
        "masked": mlm.masked_loss(entropy, xp_array(masked)),
        "non_padding": mlm.non_padding_loss(entropy, xp_array(masked), 3 * len(masked)),
        "count": mlm.masked_loss(entropy, xp_array(masked), xp_array(np.array(7.0))),
    }


@pytest.mark.parametrize("seed", range(3))
def test_both_losses_are_their_formulas(backend, seed):
    logits, targets, masked = problem(seed)
    ce = plain_cross_entropy(logits, targets)
    expected = {
        "masked": ce[masked].mean(),
        "non_padding": (5 * ce[masked].sum() + ce[~masked].sum()) / (3 * len(masked)),
        "count": ce[masked].sum() / 7,
    }
    for name, value in losses(backend.array, backend.array(ce), masked).items():
        np.testing.assert_allclose(float(value), expected[name], rtol=1e-12, err_msg=name)


def test_padding_may_be_left_out_or_put_in_with_weight_zero():
    logits, targets, masked = problem(7)
    ce = plain_cross_entropy(logits, targets)
    with_padding = np.concatenate([ce, np.zeros(10)])
    full = mlm.non_padding_loss(with_padding, np.concatenate([masked, np.zeros(10, bool)]), 100)
    assert mlm.non_padding_loss(ce, masked, 100) == pytest.approx(full, rel=1e-14)


def test_unmasked_positions_weigh_nothing_in_the_masked_loss(autograd):
    logits, targets, masked = problem(8)

    def loss(x):
        return mlm.masked_loss(mlm.cross_entropy(x, autograd.array(targets)), autograd.array(masked))

    (gradient,) = autograd.gradient(loss, logits)
    assert (gradient[~masked] == 0).all()
    assert (np.abs(gradient[masked]).sum(axis=1) > 0).all()


@pytest.mark.parametrize("empty", ["nothing masked", "no positions"])
def test_no_masked_position_gives_zero_and_a_finite_gradient(autograd, empty):
    logits, targets, masked = problem(9)
    if empty == "no positions":
        logits, targets, masked = logits[:0], targets[:0], masked[:0]
    masked = np.zeros_like(masked)

    def loss(x):
        return mlm.masked_loss(mlm.cross_entropy(x, autograd.array(targets)), autograd.array(masked))

    assert float(loss(autograd.array(logits))) == 0
    assert (autograd.gradient(loss, logits)[0] == 0).all()


@pytest.mark.parametrize("name", ["masked", "non_padding", "count"])
def test_gradients_are_those_of_central_differences(backends, name):
    logits, targets, masked = problem(10)
    direction = np.random.default_rng(11).normal(size=logits.shape)

    def loss(x, array=np.asarray):
        return losses(array, mlm.cross_entropy(x, array(targets)), masked)[name]

    h = 1e-6
    expected = (loss(logits + h * direction) - loss(logits - h * direction)) / (2 * h)
    for backend in (backends["torch"], backends["jax"]):
        (gradient,) = backend.gradient(lambda x, b=backend: loss(x, b.array), logits)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-6)


def test_the_whole_loss_can_be_compiled(backends):
    logits, targets, masked = problem(12)
    jitted = jax.jit(lambda x, t, m: mlm.masked_loss(mlm.cross_entropy(x, t), m))
    expected = plain_cross_entropy(logits, targets)[masked].mean()
    assert float(jitted(logits, targets, masked)) == pytest.approx(expected, rel=1e-10)


def test_accuracy_counts_the_targets_alone(backend):
    logits = np.eye(4)[[0, 1, 2, 3, 0]]
    targets = np.array([0, 1, 3, mlm.IGNORED, 1])
    assert float(mlm.masked_accuracy(backend.array(logits), backend.array(targets))) == 0.5
    none = np.full(5, mlm.IGNORED)
    assert float(mlm.masked_accuracy(backend.array(logits), backend.array(none))) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: mlm.draw_mask(np.zeros(3), np.ones(4, bool)),
        lambda: mlm.cross_entropy(np.zeros((3, 5)), np.zeros(4, int)),
        lambda: mlm.masked_loss(np.zeros(3), np.ones(4, bool)),
        lambda: mlm.non_padding_loss(np.zeros(3), np.ones(4, bool), 10),
        lambda: mlm.non_padding_loss(np.zeros(3), np.ones(3, bool), 0),
    ],
)
def test_shapes_that_do_not_fit_are_errors(call):
    with pytest.raises(ValueError, match=r"shapes differ|one target|at least one position"):
        call()
