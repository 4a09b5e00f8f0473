"""A convolution over few places is the same one as a matrix product; which of the two it is, is decided by shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contextual_inversion.core.models import small_convolutions
from contextual_inversion.core.models.small_convolutions import product, small_as_products

SIDES = st.integers(1, 9)


@given(
    batch=st.integers(1, 3),
    size=st.tuples(SIDES, SIDES),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 1)]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
)
def test_the_product_is_the_convolution_and_has_its_gradient(batch, size, kernel, stride, padding, bias):
    if any(side + 2 * padding < reach for side, reach in zip(size, kernel, strict=True)):
        return
    layer = nn.Conv2d(5, 7, kernel, stride, padding, bias=bias).double()
    x = torch.randn(batch, 5, *size, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    how = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    found = product(x, layer.weight, layer.bias, expected.shape[-2:], **how)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((weights * out).sum(), x)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.fixture
def products(monkeypatch):
    """The shapes of what went through a product."""
    seen = []
    plain = small_convolutions.product
    monkeypatch.setattr(small_convolutions, "MANY", 5 * 7 * 9)
    monkeypatch.setattr(
        small_convolutions, "product", lambda x, *r, **k: seen.append(tuple(x.shape)) or plain(x, *r, **k)
    )
    return seen


def test_shape_decides_and_only_inside(products):
    wide, narrow, grouped = nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(4, 7, 3), nn.Conv2d(10, 14, 3, groups=2)
    few, many = torch.randn(2, 5, 8, 8), torch.randn(2, 5, 8, 9)
    before = [wide(few), wide(many)]
    with small_as_products([wide, narrow, grouped]):
        after = [wide(few), wide(many)]
        narrow(torch.randn(1, 4, 4, 4))
        grouped(torch.randn(1, 10, 4, 4))
    assert products == [(2, 5, 8, 8)]
    torch.testing.assert_close(after[0], before[0])
    assert torch.equal(after[1], before[1])
    assert torch.equal(wide(few), before[0])
    assert "_conv_forward" not in vars(wide)


def test_another_device_and_half_precision_keep_their_own(products):
    layer = nn.Conv2d(5, 7, 3, padding=1)
    with small_as_products([layer]), torch.device("meta"):
        layer.to("meta")(torch.randn(1, 5, 4, 4))
    half = nn.Conv2d(5, 7, 3, padding=1).bfloat16()
    with small_as_products([half]):
        half(torch.randn(1, 5, 4, 4).bfloat16())
    assert products == []
