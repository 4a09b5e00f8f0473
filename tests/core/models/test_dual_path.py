"""METHODS.md 3.6 on a diffusers model: the exact identities of the two paths, and nothing left behind."""

import copy

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")

from small_pipelines import KINDS, pipeline
from test_low_rank import attention_layers, random_delta, state, unchanged

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.dual_path import DualPath, DualPathModel, dual_path, predict_dual
from contextual_inversion.core.models.low_rank import LowRankDelta, apply_deltas
from contextual_inversion.core.models.protocol import Conditioning, ImageSize, TokenMeans
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts

HARD, SOFT, EMPTY = "a photo of a horse", "a photo of a painting", ""
SIZE = ImageSize(64, 64)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    found = DiffusersModel.from_pipeline(pipeline(request.param))
    for module in (found.unet, *(encoder.module for encoder in found.text_encoders.values())):
        module.eval().requires_grad_(False)
    return found


def prompt(model, *templates):
    with torch.no_grad():
        return model.conditioning(encode_prompts(model, templates), SIZE)


def deltas(model, kinds=("attn1", "attn2"), zero=False):
    found = {}
    for seed, (name, module) in enumerate(attention_layers(model).items()):
        if any(kind in name for kind in kinds):
            delta = random_delta(module, seed)
            found[name] = LowRankDelta(delta.a, 0 * delta.b if zero else delta.b, delta.scale)
    return found


def noisy(batch=2):
    latents = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(9))
    return latents, torch.tensor([40, 900, 500])[:batch]


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("attn1", "attn2"), ("attn1",), ("attn2",), ()])
def test_alpha_zero_is_the_plain_model_with_the_hard_prompt_bit_by_bit(model, kinds):
    hard = prompt(model, HARD, HARD)
    path = DualPath(prompt(model, SOFT), deltas(model, kinds), alpha=0.0)
    assert torch.equal(predict_dual(model, *noisy(), hard, path), model.predict(*noisy(), hard))


@torch.no_grad()
@pytest.mark.parametrize("kinds", [("attn1", "attn2"), ("attn1",), ("attn2",), ()])
def test_alpha_one_is_the_model_with_the_deltas_and_the_soft_prompt(model, kinds):
    changes = deltas(model, kinds)
    path = DualPath(prompt(model, SOFT), changes, alpha=1.0)
    with apply_deltas(model, changes):
        expected = model.predict(*noisy(), prompt(model, SOFT, SOFT))
    equal_but_for_rounding(predict_dual(model, *noisy(), prompt(model, HARD, HARD), path), expected)


@torch.no_grad()
def test_the_other_pairing_is_its_mirror(model):
    changes, hard, soft = deltas(model), prompt(model, HARD, HARD), prompt(model, SOFT, SOFT)
    with apply_deltas(model, changes):
        expected = model.predict(*noisy(), hard)
    found = predict_dual(model, *noisy(), hard, DualPath(soft, changes, alpha=0.0, modulated="hard"))
    equal_but_for_rounding(found, expected)
    found = predict_dual(model, *noisy(), hard, DualPath(soft, changes, alpha=1.0, modulated="hard"))
    equal_but_for_rounding(found, model.predict(*noisy(), soft))
    # Changing places of prompts, paths and alpha changes nothing.
    one = predict_dual(model, *noisy(), hard, DualPath(soft, changes, alpha=0.3))
    two = predict_dual(model, *noisy(), soft, DualPath(hard, changes, alpha=0.7, modulated="hard"))
    equal_but_for_rounding(two, one)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_without_a_difference_alpha_does_not_matter(model, alpha):
    hard = prompt(model, HARD, HARD)
    found = predict_dual(model, *noisy(), hard, DualPath(prompt(model, HARD), deltas(model, zero=True), alpha))
    equal_but_for_rounding(found, model.predict(*noisy(), hard))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_two_paths_as_it_rounds_one(model, dtype):
    half = copy.deepcopy(model)
    half.unet.to(dtype)
    changes, hard, soft = deltas(model), prompt(model, HARD, HARD), prompt(model, SOFT, SOFT)

    def rounding(run):
        exact, rounded = run(model), run(half)
        assert rounded.isfinite().all()
        return float((rounded - exact).norm() / exact.norm())

    def with_deltas(one):
        with apply_deltas(one, changes):
            return one.predict(*noisy(), soft)

    def dual(one, *options):
        return predict_dual(one, *noisy(), hard, DualPath(soft, changes, *options))

    plain = half.predict(*noisy(), hard)
    assert torch.equal(dual(half, 0.0), plain)
    bound = 2 * max(rounding(lambda one: one.predict(*noisy(), hard)), rounding(with_deltas))
    for options in ((1.0,), (0.3,), (0.3, "hard")):
        assert rounding(lambda one, options=options: dual(one, *options)) < bound
        assert float((dual(half, *options) - plain).norm() / plain.norm()) > 2 * bound


@torch.no_grad()
def test_a_single_layer_is_linear_in_alpha_and_its_formula(model):
    """D6 and D7 spelled out: two whole passes of one attention layer with the other layers left alone."""
    layers = model.cross_attention_layers()
    last = layers[-1].removesuffix(".attn2")
    changes = {name: delta for name, delta in deltas(model).items() if name.startswith(last)}
    hard, soft = prompt(model, HARD, HARD), prompt(model, SOFT, SOFT)
    module = dict(model.unet.named_modules())[f"{last}.attn2"]
    seen = {}

    def outputs(given, alpha):
        handle = module.register_forward_hook(lambda m, i, k, o: seen.update(x=i, out=o, k=k), with_kwargs=True)
        try:
            alphas = [0.0] * (len(layers) - 1) + [alpha]
            predict_dual(model, *noisy(), given, DualPath(Conditioning(soft.context), changes, alphas))
        finally:
            handle.remove()
        return seen["out"]

    # With self-attention's deltas away, the input of the last cross-attention is common to every alpha.
    changes = {name: delta for name, delta in changes.items() if ".attn2." in name}
    ends = [outputs(hard, alpha) for alpha in (0.0, 1.0)]
    for alpha in (0.25, 0.6):
        equal_but_for_rounding(outputs(hard, alpha), alpha * ends[1] + (1 - alpha) * ends[0])
    assert not torch.allclose(ends[0], ends[1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.4, 1.0])
@pytest.mark.parametrize("modulated", ["soft", "hard"])
def test_only_the_chosen_rows_have_two_paths(model, alpha, modulated):
    both = prompt(model, EMPTY, HARD)
    path = DualPath(prompt(model, SOFT), deltas(model), alpha, modulated, rows=slice(-1, None))
    found, plain = predict_dual(model, *noisy(), both, path), model.predict(*noisy(), both)
    equal_but_for_rounding(found[0], plain[0])
    alone = predict_dual(
        model, noisy()[0][1:], noisy()[1][1:], prompt(model, HARD), DualPath(path.soft, path.deltas, alpha, modulated)
    )
    equal_but_for_rounding(found[1:], alone)
    assert not torch.allclose(found[1], plain[1], atol=1e-3)


@torch.no_grad()
def test_the_probe_sees_the_blend(model):
    hard, soft = prompt(model, HARD, HARD), prompt(model, SOFT, SOFT)
    blocks = len(model.cross_attention_layers())
    maps = {}
    for alpha in (0.0, 0.25, 1.0):
        means = TokenMeans()
        path = DualPath(soft, {}, alpha=[alpha] + [0.0] * (blocks - 1))
        watched = predict_dual(model, *noisy(), hard, path, means)
        equal_but_for_rounding(watched, predict_dual(model, *noisy(), hard, path))
        assert [layer.shape for layer in means.layers] == [(2, 77)] * blocks
        maps[alpha] = means.layers[0]
    torch.testing.assert_close(maps[0.25], 0.75 * maps[0.0] + 0.25 * maps[1.0])


@torch.no_grad()
def test_an_observer_sees_the_batch_as_it_is(model):
    """The rows of the other path are no pictures of the batch."""

    class Observer:
        def observe(self, layer, query, key, scale=None, size=None):
            seen.append((len(query), len(key)))

    seen, soft = [], prompt(model, SOFT, SOFT)
    predict_dual(model, *noisy(), prompt(model, HARD, HARD), DualPath(soft, deltas(model), 0.4), Observer())
    assert seen == [(2, 2)] * len(model.cross_attention_layers())


@torch.no_grad()
def test_the_pooled_prompt_is_blended_by_the_mean_of_the_blocks(model, monkeypatch):
    seen, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *given: seen.append(given[2].y) or predict(*given))
    hard, soft = prompt(model, HARD, HARD), prompt(model, SOFT)
    blocks = len(model.cross_attention_layers())
    predict_dual(model, *noisy(), hard, DualPath(soft, {}, [1.0] + [0.0] * (blocks - 1), rows=slice(1, None)))
    if hard.y is None:
        assert seen == [None]
        return
    assert torch.equal(seen[0][0], hard.y[0])
    torch.testing.assert_close(seen[0][1], soft.y[0] / blocks + hard.y[1] * (1 - 1 / blocks))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_deltas_and_the_soft_prompt(model, checkpointing):
    changes = deltas(model)
    leaves = [value.requires_grad_() for delta in changes.values() for value in (delta.a, delta.b)]
    soft = prompt(model, SOFT)
    context = soft.context.clone().requires_grad_()
    hard = prompt(model, HARD, HARD)

    def loss():
        path = DualPath(Conditioning(context, soft.y), changes, 0.4)
        return predict_dual(model, *noisy(), hard, path).square().mean()

    with model.session(gradient_checkpointing=checkpointing):
        # After the exit of the pass: a checkpointed block that runs again must still find both paths.
        gradients = torch.autograd.grad(loss(), [context, *leaves])
        assert all(bool(g.abs().max() > 0) for g in gradients)
        step = 1e-2 * gradients[0] / gradients[0].norm()
        ends = []
        with torch.no_grad():
            for sign in (1, -1):
                context += sign * step
                ends.append(loss().item())
                context -= sign * step
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(gradients[0].norm()), rel=3e-2)


@torch.no_grad()
def test_everything_is_as_it_was(model):
    before, processors = state(model), dict(model.unet.attn_processors)
    with pytest.raises(KeyboardInterrupt), dual_path(model, DualPath(prompt(model, SOFT), deltas(model))):
        raise KeyboardInterrupt
    assert unchanged(before, state(model))
    assert model.unet.attn_processors == processors


@torch.no_grad()
def test_sampling_over_both_paths(model):
    positive, negative = prompt(model, HARD), prompt(model, EMPTY)
    keywords = {"shape": (1, 4, 16, 16), "steps": 2, "guidance": 2.0, "seed": 1}
    plain = sample(model, positive, negative, **keywords)
    pictures = {
        alpha: sample(
            DualPathModel(model, DualPath(prompt(model, SOFT), deltas(model), alpha, rows=slice(-1, None))),
            positive,
            negative,
            **keywords,
        )
        for alpha in (0.0, 0.5)
    }
    assert torch.equal(pictures[0.0], plain)
    assert not torch.allclose(pictures[0.5], plain, atol=1e-3)


def test_what_cannot_be_is_refused(model):
    soft, good = prompt(model, SOFT), deltas(model)
    for alpha in (-0.1, 1.5, [0.5, 2.0]):
        with pytest.raises(ValueError, match="between 0"):
            DualPath(soft, good, alpha)
    with pytest.raises(ValueError, match="soft or hard"):
        DualPath(soft, good, modulated="both")
    with pytest.raises(ValueError, match="attention projections only"):
        DualPath(soft, {"conv_in": next(iter(good.values()))})
    with pytest.raises(ValueError, match="alpha has 2 numbers"), dual_path(model, DualPath(soft, good, [0.1] * 2)):
        pass
    wrong = {"up_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q": next(iter(good.values()))}
    with pytest.raises(ValueError, match="another kind of model"), dual_path(model, DualPath(soft, wrong)):
        pass
