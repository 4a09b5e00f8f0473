"""Deltas on a diffusers model: merged equals on the fly, gradients reach them alone, and everything is given back."""

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")

from small_pipelines import KINDS, pipeline

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.lora import from_lora, kohya_names, to_lora
from contextual_inversion.core.models.low_rank import (
    LowRankDelta,
    WeightDelta,
    apply_deltas,
    text_layers,
    text_weight_layers,
)
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    found = DiffusersModel.from_pipeline(pipeline(request.param))
    for module in (found.unet, *(encoder.module for encoder in found.text_encoders.values())):
        module.eval().requires_grad_(False)
    return found


def random_delta(module, seed=0, rank=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = module.in_features, module.out_features
    a = torch.randn(inputs, rank, generator=generator) / inputs**0.5
    b = torch.randn(rank, outputs, generator=generator) / rank**0.5
    return LowRankDelta(a.to(dtype), b.to(dtype), 0.7)


def random_weights(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = (module.weight, module.bias)
    deltas = (None if p is None else 0.3 * p.abs().mean() * torch.randn(p.shape, generator=generator) for p in parts)
    return WeightDelta(*deltas, 0.7)


def attention_layers(model):
    names = ("to_q", "to_k", "to_v", "to_out.0")
    return {name: part for name, part in model.linear_layers().items() if name.endswith(names)}


def deltas_of(model, make=random_delta):
    layers = attention_layers(model) | text_layers(model)
    return {name: make(module, seed) for seed, (name, module) in enumerate(layers.items())}


def picture(model, template="a photo of a dog", batch=2):
    generator = torch.Generator().manual_seed(9)
    latents = torch.randn(batch, 4, 16, 16, generator=generator).to(model.device)
    given = model.conditioning(encode_prompts(model, [template] * batch), ImageSize(64, 64))
    return model.predict(latents, torch.tensor([40, 900])[:batch], given)


def state(model):
    modules = [model.unet, *(encoder.module for encoder in model.text_encoders.values())]
    return [(name, value.clone()) for module in modules for name, value in module.state_dict().items()], [
        len(part._forward_hooks) for module in modules for part in module.modules()
    ]


def unchanged(before, after):
    same = all(torch.equal(one[1], two[1]) for one, two in zip(before[0], after[0], strict=True))
    return same and before[1] == after[1]


def every_layer(model):
    return model.weight_layers() | text_weight_layers(model)


def merge(model, deltas, sign=1.0):
    layers = every_layer(model)
    with torch.no_grad():
        for name, delta in deltas.items():
            full = delta if isinstance(delta, WeightDelta) else WeightDelta(delta.weight())
            for part in ("weight", "bias"):
                if getattr(full, part) is not None:
                    getattr(layers[name], part).add_(sign * full.scale * getattr(full, part))


@torch.no_grad()
def test_merged_equals_on_the_fly(model):
    deltas = deltas_of(model)
    plain, before = picture(model), state(model)
    with apply_deltas(model, deltas):
        on_the_fly = picture(model)
    assert unchanged(before, state(model))
    assert torch.equal(picture(model), plain)
    assert not torch.allclose(on_the_fly, plain, atol=1e-3)
    merge(model, deltas)
    try:
        torch.testing.assert_close(picture(model), on_the_fly, rtol=1e-3, atol=1e-4)
    finally:
        for (_, old), value in zip(before[0], tensors(model), strict=True):
            value.copy_(old)


def tensors(model):
    modules = [model.unet, *(encoder.module for encoder in model.text_encoders.values())]
    return [value for module in modules for value in module.state_dict().values()]


@torch.no_grad()
def test_full_rank_merged_equals_on_the_fly_for_every_layer(model):
    before = state(model)
    deltas = {name: random_weights(module, seed) for seed, (name, module) in enumerate(every_layer(model).items())}
    kinds = {type(module) for module in model.weight_layers().values()}
    assert {torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm} <= kinds
    with apply_deltas(model, deltas):
        on_the_fly = picture(model)
    merge(model, deltas)
    try:
        merged = picture(model)
    finally:
        for (_, old), value in zip(before[0], tensors(model), strict=True):
            value.copy_(old)
    torch.testing.assert_close(on_the_fly, merged, rtol=1e-3, atol=1e-3 * float(merged.abs().max()))
    assert not torch.allclose(on_the_fly, picture(model), atol=1e-3)


@torch.no_grad()
def test_deltas_add_up_and_nest(model):
    name, module = next(iter(attention_layers(model).items()))
    one, two = random_delta(module, 1), random_delta(module, 2)
    both = LowRankDelta(torch.cat([one.a, two.a], 1), torch.cat([one.b, two.b], 0), one.scale)
    found = []
    for given in ({name: both}, {name: [one, two]}):
        with apply_deltas(model, given):
            found.append(picture(model))
    with apply_deltas(model, {name: one}), apply_deltas(model, {name: two}):
        found.append(picture(model))
    for other in found[1:]:
        equal_but_for_rounding(other, found[0])


@pytest.mark.parametrize("rows", [slice(1, 2), torch.tensor([0.0, 1.0]), torch.tensor([False, True])])
@torch.no_grad()
def test_rows_limit_a_delta_to_some_samples(model, rows):
    deltas = {name: random_delta(part) for name, part in attention_layers(model).items()}
    plain = picture(model)
    with apply_deltas(model, deltas):
        everywhere = picture(model)
    with apply_deltas(model, deltas, rows):
        some = picture(model)
    equal_but_for_rounding(some[0], plain[0])
    equal_but_for_rounding(some[1], everywhere[1])


@torch.no_grad()
def test_a_delta_of_its_own_for_every_sample(model):
    layers = attention_layers(model)
    pairs = {name: (random_delta(part, 1), random_delta(part, 2)) for name, part in layers.items()}
    stacked = {
        name: LowRankDelta(torch.stack([d.a for d in pair]), torch.stack([d.b for d in pair]), pair[0].scale)
        for name, pair in pairs.items()
    }
    with apply_deltas(model, stacked):
        together = picture(model)
    for index in range(2):
        with apply_deltas(model, {name: pair[index] for name, pair in pairs.items()}):
            equal_but_for_rounding(together[index], picture(model)[index])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_a_finite_difference(model, checkpointing):
    deltas = deltas_of(model)
    leaves = [value.requires_grad_() for delta in deltas.values() for value in (delta.a, delta.b)]
    with model.session(gradient_checkpointing=checkpointing):
        with apply_deltas(model, deltas):
            loss = picture(model).square().mean()
        # After the exit: a checkpointed block that runs again must still find them.
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        # SDXL reads the first encoder below its last layer, which therefore has no part in it.
        unused = [name for name, g in zip(deltas, found[::2], strict=True) if g is None]
        assert all(name.startswith("clip_l.") and len(model.text_encoders) > 1 for name in unused)
        leaves = [leaf for leaf, g in zip(leaves, found, strict=True) if g is not None]
        gradients = [g for g in found if g is not None]
        assert all(bool(g.abs().max() > 0) for g in gradients)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                for leaf, g in zip(leaves, gradients, strict=True):
                    leaf += sign * 0.01 * g / norm
                with apply_deltas(model, deltas):
                    ends.append(picture(model).square().mean().item())
                for leaf, g in zip(leaves, gradients, strict=True):
                    leaf -= sign * 0.01 * g / norm
    assert (ends[0] - ends[1]) / 0.02 == pytest.approx(float(norm), rel=2e-2)
    assert not any(value.requires_grad for value in tensors(model))


def test_a_recomputed_block_sees_its_own_deltas_among_others(model):
    deltas = {name: random_delta(part) for name, part in attention_layers(model).items()}
    leaves = [value.requires_grad_() for delta in deltas.values() for value in (delta.a, delta.b)]

    def gradients(checkpointing):
        with model.session(gradient_checkpointing=checkpointing):
            with apply_deltas(model, deltas):
                loss = picture(model).square().mean()
            others = {name: random_delta(part, 5) for name, part in attention_layers(model).items()}
            with apply_deltas(model, others):
                return torch.autograd.grad(loss, leaves)

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        equal_but_for_rounding(again, plain)


def test_a_mask_leaves_each_sample_the_directions_that_it_names():
    module, x = torch.nn.Linear(8, 6), torch.randn(2, 5, 8)
    delta = random_delta(module, rank=3)
    first = LowRankDelta(delta.a[:, :1], delta.b[:1], delta.scale)
    masked = delta.masked(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    expected = torch.stack([delta(module, x)[0], first(module, x)[1]])
    torch.testing.assert_close(masked(module, x), expected)


def test_a_new_delta_changes_nothing_and_trains(model):
    name, module = next(iter(attention_layers(model).items()))
    delta = LowRankDelta.initial(module, 3, generator=torch.Generator().manual_seed(1))
    assert delta.rank == 3
    plain = picture(model)
    with apply_deltas(model, {name: delta}):
        same = picture(model)
    assert torch.equal(same, plain)
    gradient_a, gradient_b = torch.autograd.grad(same.sum(), [delta.a, delta.b])
    assert not gradient_a.any()  # B is zero
    assert gradient_b.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_keeps_its_type(dtype):
    module = torch.nn.Linear(8, 6).to(dtype)
    delta, x = random_delta(module), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    added = delta(module, x)
    assert added.dtype == dtype
    exact = x.double() @ delta.weight().double().mT
    assert (added.double() - exact).abs().max() < 16 * torch.finfo(dtype).eps * exact.abs().max()


def test_everything_is_restored_after_an_error(model):
    before = state(model)
    with pytest.raises(KeyboardInterrupt), apply_deltas(model, deltas_of(model)):
        raise KeyboardInterrupt
    assert unchanged(before, state(model))


def test_what_does_not_fit_is_named(model):
    name, module = next(iter(attention_layers(model).items()))
    with (
        pytest.raises(ValueError, match="has no layer 'nowhere'"),
        apply_deltas(model, {"nowhere": random_delta(module)}),
    ):
        pass
    wrong = LowRankDelta(torch.zeros(3, 1), torch.zeros(1, 4))
    good = dict(list(deltas_of(model).items())[:2])
    before = state(model)
    with pytest.raises(ValueError, match="does not fit the layer"), apply_deltas(model, {**good, name: wrong}):
        pass
    torn = LowRankDelta(torch.zeros(module.in_features, 2), torch.zeros(3, module.out_features))
    for message, unfit in (
        ("does not fit the layer", torn),
        ("weight delta", WeightDelta(torch.zeros(2, 2))),
        ("bias delta", WeightDelta(torch.zeros_like(module.weight), torch.zeros(3))),
    ):
        with pytest.raises(ValueError, match=message), apply_deltas(model, {name: unfit}):
            pass
    assert unchanged(before, state(model))
    with pytest.raises(ValueError, match="at least 1"):
        LowRankDelta.initial(module, 0)


# As Concept.lora


def test_names_are_unique_and_whole(model):
    names = kohya_names(model)
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == set(every_layer(model))
    kohya = {name for stem, name in names.items() if stem.startswith("lora_te")}
    assert kohya == set(text_layers(model)), "ComfyUI's loader knows the norms by another name"


@torch.no_grad()
def test_there_and_back(model):
    low = deltas_of(model)
    full = {name: random_weights(module) for name, module in every_layer(model).items() if name not in low}
    assert any("layer_norm" in name for name in full)
    lora = to_lora(model, low | full)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in lora.values())
    back = from_lora(model, lora)
    assert set(back) == set(low) | set(full)
    with apply_deltas(model, low | full):
        expected = picture(model)
    with apply_deltas(model, back):
        equal_but_for_rounding(picture(model), expected)


def test_a_convolution_of_another_trainer_comes_back_whole(model):
    name, module = next((n, m) for n, m in model.weight_layers().items() if isinstance(m, torch.nn.Conv2d))
    stem = {layer: stem for stem, layer in kohya_names(model).items()}[name]
    down = torch.randn(2, *module.weight.shape[1:])
    up = torch.randn(module.weight.shape[0], 2, 1, 1)
    lora = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(1.0)}
    without = {key: value for key, value in lora.items() if not key.endswith(".alpha")}
    assert from_lora(model, without)[name].scale == 1, "an alpha that is not said is the rank"
    delta = from_lora(model, lora)[name]
    expected = 0.5 * torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    torch.testing.assert_close(delta.scale * delta.weight, expected)


def test_other_files_are_refused_by_name(model):
    name, module = next(iter(attention_layers(model).items()))
    lora = to_lora(model, {name: random_delta(module)})
    stem = next(iter(lora)).split(".")[0]
    with pytest.raises(ValueError, match="another kind of model"):
        from_lora(model, {key.replace("lora_unet_", "lora_unet_x"): value for key, value in lora.items()})
    with pytest.raises(ValueError, match="hada_w1_a"):
        from_lora(model, {f"{stem}.hada_w1_a": torch.zeros(1)})
    with pytest.raises(ValueError, match="not whole"):
        from_lora(model, {f"{stem}.lora_down.weight": torch.zeros(2, 8)})
    with pytest.raises(ValueError, match="cannot be stored"):
        to_lora(model, {name: LowRankDelta(torch.zeros(2, 8, 1), torch.zeros(2, 1, 8))})


def test_diffusers_reads_our_lora(model):
    """The names that stock diffusers makes of ours are its own layers', with our numbers and our scale."""
    loaders = pytest.importorskip("diffusers.loaders")
    loader = (
        loaders.StableDiffusionXLLoraLoaderMixin
        if len(model.text_encoders) > 1
        else loaders.StableDiffusionLoraLoaderMixin
    )
    deltas = deltas_of(model)
    found, alphas = loader.lora_state_dict(dict(to_lora(model, deltas)))[:2]
    encoders = dict(zip(model.text_encoders, ("text_encoder", "text_encoder_2"), strict=False))
    for name, delta in deltas.items():
        encoder, _, rest = name.partition(".")
        where = f"{encoders[encoder]}.{rest}" if encoder in encoders else f"unet.{name}"
        stem, down = theirs(found, where)
        assert torch.equal(down, delta.a.detach().mT), name
        assert torch.equal(found[stem.replace(".down.", ".up.")], delta.b.detach().mT), name
        alpha = [value for key, value in alphas.items() if key.startswith(stem.split(".lora")[0].split("_lora.")[0])]
        assert alpha
        assert alpha[0] == pytest.approx(delta.scale * delta.rank)


def theirs(found, where):
    """The key of the down matrix of one layer in diffusers' converted state, and the matrix."""
    processor = (
        where.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.").replace("_out.0", "_out")
    )
    for letter in "qkv":
        processor = processor.replace(f"self_attn.{letter}_proj", f"self_attn.to_{letter}")
    processor = processor.replace("self_attn.out_proj", "self_attn.to_out")
    endings = ("_lora.down.weight", ".lora.down.weight", ".lora_linear_layer.down.weight")
    matches = [base + ending for base in (processor, where) for ending in endings if base + ending in found]
    assert len(set(matches)) == 1, (where, sorted(found)[:3])
    return matches[0], found[matches[0]]
