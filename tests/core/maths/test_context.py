"""CoRe's laws (METHODS.md 1.11), and its two losses written a second time from the description of the official code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from contextual_inversion.core.maths import context as core

BOS, EOT, PAD = 1, 2, 2  # Stable Diffusion pads with EOT
seeds = st.integers(0, 2**32 - 1)
axes = st.sampled_from(["paper", "official"])
modes = st.sampled_from(["official", "paper"])


@st.composite
def prompt_pairs(draw):
    """One template filled with a concept of some vectors and with a class of some tokens:
    (ids, concept positions, reference ids, class positions)."""
    before, after = (draw(st.lists(st.integers(10, 19), max_size=4)) for _ in range(2))
    vectors, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows = []
    for filling in ([100] * vectors, [200] * tokens):
        row = [BOS, *before, *filling, *after, EOT]
        rows += [row + [PAD] * (16 - len(row)), list(range(1 + len(before), 1 + len(before) + len(filling)))]
    return rows


def outputs(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def maps(seed: int, batch: int = 2, tokens: int = 16, sizes: tuple[int, ...] = (9, 4, 1)) -> list[np.ndarray]:
    """Cross-attention maps of a few layers of different size and number of heads, (B, H, N, L)."""
    r = np.random.default_rng(seed)
    logits = [r.normal(size=(batch, 1 + i, n, tokens)) for i, n in enumerate(sizes)]
    return [np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in logits]


# Which tokens count (METHODS.md 1.2)


@given(prompt_pairs(), st.booleans(), st.booleans())
def test_both_rows_keep_the_same_context(pair, bos, padding):
    ids, concept, reference_ids, category = pair
    here, there = core.paired_context_positions(*pair, EOT, bos=bos, padding=padding)
    np.testing.assert_array_equal(np.asarray(ids)[here], np.asarray(reference_ids)[there])
    assert not set(here) & set(concept)
    assert not set(there) & set(category)
    assert (0 in here) == (0 in there) == bos
    assert ids.index(EOT) in here
    assert reference_ids.index(EOT) in there
    if not padding:
        assert here.max() == ids.index(EOT)  # nothing after the first EOT counts
        assert here.size == ids.index(EOT) + bos - len(concept)


@given(prompt_pairs())
def test_padding_adds_the_shorter_padding_of_the_two(pair):
    plain, _ = core.paired_context_positions(*pair, EOT)
    padded, _ = core.paired_context_positions(*pair, EOT, padding=True)
    assert padded.size - plain.size == 15 - max(pair[0].index(EOT), pair[2].index(EOT))
    np.testing.assert_array_equal(padded[: plain.size], plain)


def test_a_concept_may_stand_twice():
    assert core.context_positions([1, 10, 100, 11, 100, 2, 2], [2, 4], EOT).tolist() == [0, 1, 3, 5]


def test_what_is_no_pair_of_prompts_is_refused():
    with pytest.raises(ValueError, match="do not share their context"):
        core.paired_context_positions([1, 10, 100, 2], [2], [1, 11, 200, 2], [2], EOT)
    with pytest.raises(ValueError, match="do not share their context: 3 and 4 tokens"):
        core.paired_context_positions([1, 10, 100, 2], [2], [1, 10, 200, 11, 2], [2], EOT)
    with pytest.raises(ValueError, match="holds EOT"):
        core.context_positions([1, 10, 100], [2], EOT)
    for outside in ([0], [3], [4], [-1], []):
        with pytest.raises(ValueError, match="must lie between"):
            core.context_positions([1, 10, 100, 2, 2], outside, EOT)


# L_emb (C2)


def official_embedding_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """METHODS.md 1.10 no. 1: tensors (1, n-1, d) and `cosine_similarity(dim=1)`."""
    return 1 - functional.cosine_similarity(a[None], b[None], dim=1).mean()


@given(seeds)
def test_the_embedding_loss_is_that_of_paper_and_official_code(seed):
    a, b = (torch.asarray(outputs(seed + i, 5, 8)) for i in range(2))
    per_token = 1 - functional.cosine_similarity(a, b, dim=-1)
    torch.testing.assert_close(core.embedding_loss(a, b), per_token.mean())
    torch.testing.assert_close(core.embedding_loss(a, b, axis="official"), official_embedding_loss(a, b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("switch", ["paper", "official"])
def test_the_class_word_itself_has_no_loss(backend, switch, dtype):
    c, layers = backend.array(outputs(0, 2, 7, 8), dtype), backend.tree(maps(0), dtype)
    assert float(core.embedding_loss(c, c, axis=switch)) == 0
    assert float(core.attention_loss(layers, layers, mode=switch)) == 0


# Gradients here are torch's: test_backends.py shows that JAX has the same.


@given(seeds, axes)
def test_the_class_word_itself_has_no_embedding_loss_and_no_gradient(backends, seed, axis):
    autograd = backends["torch"]
    c = outputs(seed, 2, 7, 8)
    assert core.embedding_loss(c, c.copy(), axis=axis) == 0
    (gradient,) = autograd.gradient(lambda x: core.embedding_loss(x, autograd.array(c), axis=axis), c)
    assert np.all(gradient == 0)


@given(seeds, axes, prompt_pairs())
def test_the_embedding_loss_is_between_0_and_2(seed, axis, pair):
    here, there = core.paired_context_positions(*pair, EOT)
    c, ref = outputs(seed, 16, 4), outputs(seed + 1, 16, 4)
    assert 0 <= core.embedding_loss(c, ref, here, there, axis=axis) <= 2 + 1e-12
    np.testing.assert_allclose(core.embedding_loss(c, -c, axis=axis), 2, rtol=1e-12)


@given(seeds, axes, st.floats(1e-3, 1e3))
def test_the_embedding_loss_knows_no_scale(seed, axis, scale):
    c, ref = outputs(seed, 16, 4), outputs(seed + 1, 16, 4)
    np.testing.assert_allclose(
        core.embedding_loss(scale * c, ref, axis=axis), core.embedding_loss(c, ref, axis=axis), rtol=1e-10
    )


@given(seeds, axes)
def test_a_zero_output_does_no_harm(backends, seed, axis):
    autograd = backends["torch"]
    c, ref = outputs(seed, 5, 4), outputs(seed + 1, 5, 4)
    c[2], ref[2], c[:, 1] = 0, 0, 0
    (gradient,) = autograd.gradient(lambda x: core.embedding_loss(x, autograd.array(ref), axis=axis), c)
    assert np.isfinite(gradient).all()
    assert np.isfinite(core.embedding_loss(c, ref, axis=axis))


# L_attn (C3)


def official_attention_loss(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """METHODS.md 1.10 no. 3: per layer the mean over heads and pixels, MSE over tokens; sum over
    batch; mean over layers."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        for sample in range(a.shape[0]):
            total += functional.mse_loss(a[sample].mean(0).mean(0), b[sample].mean(0).mean(0)) / len(ours)
    return total


def literal_attention_loss(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """METHODS.md C3 with 1.10 no. 4: one scalar a token over all layers, each layer weighing the same."""
    mu, mu_ref = (torch.stack([m.mean(dim=(1, 2)) for m in layers]).mean(0) for layers in (ours, theirs))
    return ((mu - mu_ref) ** 2).mean(dim=1).sum()


@given(seeds, prompt_pairs())
def test_the_attention_loss_is_that_of_official_code_and_paper(seed, pair):
    here, there = core.paired_context_positions(*pair, EOT)
    ours, theirs = ([torch.asarray(m) for m in maps(seed + i)] for i in range(2))
    selected = [m[..., here] for m in ours], [m[..., there] for m in theirs]
    torch.testing.assert_close(core.attention_loss(ours, theirs, here, there), official_attention_loss(*selected))
    torch.testing.assert_close(
        core.attention_loss(ours, theirs, here, there, mode="paper"), literal_attention_loss(*selected)
    )


@given(seeds)
def test_the_official_form_is_never_below_the_literal_one(seed):
    ours, theirs = maps(seed), maps(seed + 1)
    official, paper = (core.attention_loss(ours, theirs, mode=mode) for mode in ("official", "paper"))
    assert official >= paper * (1 - 1e-12)
    one = ours[:1], theirs[:1]  # equal where there is one layer
    np.testing.assert_allclose(core.attention_loss(*one), core.attention_loss(*one, mode="paper"), rtol=1e-12)


@given(seeds, modes)
def test_the_class_word_itself_has_no_attention_loss_and_no_gradient(backends, seed, mode):
    autograd = backends["torch"]
    same = maps(seed)
    assert core.attention_loss(same, maps(seed), mode=mode) == 0
    gradients = autograd.gradient(lambda *xs: core.attention_loss(xs, autograd.tree(same), mode=mode), *same)
    assert all(np.all(g == 0) for g in gradients)


@given(seeds, modes, st.integers(2, 4))
def test_the_attention_loss_is_a_sum_over_the_batch(seed, mode, copies):
    ours, theirs = maps(seed, batch=1), maps(seed + 1, batch=1)
    one = core.attention_loss(ours, theirs, mode=mode)
    repeated = [[np.repeat(m, copies, axis=0) for m in layers] for layers in (ours, theirs)]
    np.testing.assert_allclose(core.attention_loss(*repeated, mode=mode), copies * one, rtol=1e-12)


@given(seeds, modes, st.permutations(range(4)))
def test_the_order_of_the_batch_and_of_layers_heads_and_pixels_does_not_matter(seed, mode, order):
    ours, theirs = maps(seed, batch=4), maps(seed + 1, batch=4)
    loss = core.attention_loss(ours, theirs, mode=mode)
    batch = [[m[list(order)] for m in layers] for layers in (ours, theirs)]
    np.testing.assert_allclose(core.attention_loss(*batch, mode=mode), loss, rtol=1e-12)
    np.testing.assert_allclose(core.attention_loss(ours[::-1], theirs[::-1], mode=mode), loss, rtol=1e-12)
    np.testing.assert_allclose(
        core.attention_loss([m[:, ::-1, ::-1] for m in ours], theirs, mode=mode), loss, rtol=1e-12
    )


@given(seeds, modes, prompt_pairs())
def test_means_kept_by_a_probe_serve_as_well_as_maps(seed, mode, pair):
    positions = core.paired_context_positions(*pair, EOT)
    ours, theirs = maps(seed), maps(seed + 1)
    kept = [[core.attention_token_means(m) for m in layers] for layers in (ours, theirs)]
    assert core.attention_loss(*kept, *positions, mode=mode) == core.attention_loss(ours, theirs, *positions, mode=mode)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_maps_of_any_size_have_an_exact_mean(backends, dtype):
    autograd = backends["torch"]
    ones = autograd.array(np.ones((1, 2, 70_000, 1)), dtype)  # more than float16 can count
    assert float(core.attention_token_means(ones)[0, 0]) == 1


@given(seeds, axes, prompt_pairs())
def test_only_context_tokens_have_a_gradient(backends, seed, axis, pair):
    autograd = backends["torch"]
    here, there = core.paired_context_positions(*pair, EOT)
    outside = np.setdiff1d(np.arange(16), here)  # the concept's own vectors and all after the first EOT
    c, ref = outputs(seed, 16, 4), autograd.array(outputs(seed + 1, 16, 4))
    (gradient,) = autograd.gradient(lambda x: core.embedding_loss(x, ref, here, there, axis=axis), c)
    assert np.all(gradient[outside] == 0)
    assert np.any(gradient[here] != 0)
    layers, theirs = maps(seed), autograd.tree(maps(seed + 1))
    for g in autograd.gradient(lambda *xs: core.attention_loss(xs, theirs, here, there, mode=axis), *layers):
        assert np.all(g[..., outside] == 0)
        assert np.all(g[..., here] != 0)


def test_wrong_shapes_and_names_are_named():
    a, b = np.zeros((2, 7, 4)), np.zeros((2, 6, 4))
    with pytest.raises(ValueError, match=r"outputs \(2, 7, 4\), reference \(2, 6, 4\)"):
        core.embedding_loss(a, b)
    with pytest.raises(ValueError, match=r"outputs \(2, 2, 4\), reference \(2, 1, 4\)"):
        core.embedding_loss(a, b, [0, 1], [0])
    with pytest.raises(ValueError, match="unknown axis 'tokens'"):
        core.embedding_loss(a, a, axis="tokens")
    with pytest.raises(ValueError, match=r"attention \(2, 7\), reference \(3, 7\)"):
        core.attention_loss([np.zeros((2, 7))], [np.zeros((3, 7))])
    with pytest.raises(ValueError, match=r"\(B, H, N, L\) expected, got \(2, 7, 4\)"):
        core.attention_loss([a], [a])
    with pytest.raises(ValueError, match="2 and 1"):
        core.attention_loss([a, a], [a])
    with pytest.raises(ValueError, match="0 and 0"):
        core.attention_loss([], [])
    with pytest.raises(ValueError, match="unknown mode 'pixels'"):
        core.attention_loss([a], [a], mode="pixels")
