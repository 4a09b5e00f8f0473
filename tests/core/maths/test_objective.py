"""METHODS.md C4, C6, D5 and 2.6: a training minimises a weighted sum."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths.context import LAMBDA_ATTN, LAMBDA_EMB
from contextual_inversion.core.maths.objective import weighted_sum

numbers = st.floats(0, 10)


@given(*[numbers] * 5)
def test_the_loss_is_the_weighted_sum(diffusion, embedding, attention, lambda_emb, lambda_attn):
    regularization = [(lambda_emb, embedding), (lambda_attn, attention)]
    loss = weighted_sum([(1, diffusion), *regularization])
    np.testing.assert_allclose(loss, diffusion + lambda_emb * embedding + lambda_attn * attention, rtol=1e-12)
    assert weighted_sum([(1, 0), *regularization]) == weighted_sum(regularization)
    assert weighted_sum([(1, 0), (LAMBDA_EMB, 1), (LAMBDA_ATTN, 0)]) == 1.5e-4
    assert weighted_sum([(1, 0), (LAMBDA_EMB, 0), (LAMBDA_ATTN, 1)]) == 0.05


@given(numbers, numbers, st.floats(0, 1))
def test_it_is_linear_in_lambda_and_the_diffusion_loss_at_zero(diffusion, loss, weight):
    assert weighted_sum([(1, diffusion), (0.0, loss)]) == diffusion
    assert weighted_sum([(1, diffusion), (weight, loss)]) == diffusion + weight * loss


def test_the_sum_of_the_tuning_encoder():
    parts = [np.asarray(x) for x in (1.5, 0.25, 4.0)]
    np.testing.assert_allclose(weighted_sum(zip((1, 0.1, 0.5), parts, strict=True)), 3.525)


def test_without_terms_it_is_its_start():
    assert weighted_sum([], start=3.0) == 3.0
