"""Stand-ins for ComfyUIs after 0.33: what is known of them, put into the one that is here.

Each stand-in is written from facts (what is called with what, and what comes back), not from anybody's code. Where a
newer ComfyUI is installed they change nothing that it does not do already.
"""

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
from contextual_inversion.core.models.low_rank import LowRankDelta, apply_deltas
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny.config import LATENT_CHANNELS

HEIGHT, WIDTH, BATCH = 8, 12, 2


@pytest.fixture(scope="module")
def sockets(comfyui: Any) -> Any:
    from contextual_inversion.nodes.comfy import demo_model

    with torch.inference_mode():
        return SimpleNamespace(model=demo_model.load_model_patcher(), clip=demo_model.load_clip())


# How attention is called since 0.39, and in 0.46


def whole(x: torch.Tensor, heads: int, split: bool) -> torch.Tensor:
    return x if split else x.unflatten(-1, (heads, -1)).transpose(1, 2)


def int8(q: Any, k: Any, v: Any, heads: int, mask: Any = None, **keywords: Any) -> torch.Tensor:
    """A back end without a backward pass whose numbers no other has: quantised values, scores rounded to a coarse
    grid."""
    q, k, v = (whole(x, heads, keywords.get("skip_reshape", False)) for x in (q, k, v))
    with torch.no_grad():
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        out = ((scores * 8).round() / 8).softmax(-1) @ ((v * 64).round() / 64)
    return out.transpose(1, 2).flatten(2)


def in_containers(q: Any, k: Any, v: Any, *rest: Any, **keywords: Any) -> torch.Tensor:
    """The same for containers, whose numbers differ from those for tensors: which of the two ran is to be seen."""
    return 1.01 * int8(q.take(), k.take(), v.take(), *rest, **keywords)


class Preferred(torch.nn.Module):
    """What a checkpoint with an attention configuration has in each CrossAttention."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function


def wrap_like_0_46(function: Any, container: type) -> Any:
    """Back ends as 0.46 wraps them: the override first, which never learns of the preferred one; then that; and each
    with a function of its own for containers, where it has one."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, preferred_attention: Any = None, **keywords: Any) -> Any:
        packed = isinstance(arguments[0], container)

        def tensors() -> tuple[Any, ...]:
            return (*(x.take() for x in arguments[:3]), *arguments[3:]) if packed else arguments

        if "_inside_attn_wrapper" not in keywords:
            options = keywords.get("transformer_options") or {}
            keywords["_inside_attn_wrapper"] = True
            if "optimized_attention_override" in options:
                override = options["optimized_attention_override"]
                if packed and hasattr(override, "container_function"):
                    return override.container_function(*arguments, **keywords)
                return override(function, *tensors(), **keywords)
            if preferred_attention is not None and preferred_attention.function is not None:
                return preferred_attention.function(*arguments, **keywords)
        if packed and wrapper.container_function is not None:
            return wrapper.container_function(*arguments, **keywords)
        return function(*tensors(), **keywords)

    wrapper.container_function = None
    return wrapper


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch, comfyui: Any, sockets: Any) -> Any:
    """Cross- and self-attention that hand q, k and v on as containers, to back ends as 0.46 wraps them. Returns the
    wrapped `int8`."""
    import comfy.ldm.modules.attention as theirs

    for name in ("attention_basic", "attention_pytorch", "attention_split", "attention_sub_quad"):
        plain = getattr(theirs, name).__wrapped__
        monkeypatch.setattr(theirs, name, wrap_like_0_46(plain, theirs.AttentionTensorContainer))
    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(theirs, name, getattr(theirs, getattr(theirs, name).__name__))

    def forward(self: Any, x: Any, context: Any = None, value: Any = None, mask: Any = None, **options: Any) -> Any:
        context = x if context is None else context
        parts = (self.to_q(x), self.to_k(context), self.to_v(context if value is None else value))
        packed = [theirs.AttentionTensorContainer(part) for part in parts]
        keywords = {"attn_precision": self.attn_precision, **options}
        preferred = getattr(self, "comfy_attention", None)
        return self.to_out(theirs.optimized_attention(*packed, self.heads, **keywords, preferred_attention=preferred))

    monkeypatch.setattr(theirs.CrossAttention, "forward", forward)
    back_end = wrap_like_0_46(int8, theirs.AttentionTensorContainer)
    back_end.container_function = in_containers
    return back_end


def sampled(model: Any, clip: Any, steps: int = 2) -> torch.Tensor:
    import comfy.sample

    positive, negative = (encoded(clip, text) for text in ("a photo of a red cat", "blurry"))
    empty = torch.zeros(BATCH, LATENT_CHANNELS, HEIGHT, WIDTH)
    noise = comfy.sample.prepare_noise(empty, 7)
    given = (model, noise, steps, 4.0, "euler", "normal", positive, negative, empty)
    with torch.inference_mode():
        return comfy.sample.sample(*given, disable_pbar=True).clone()


def encoded(clip: Any, prompt: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def recorded_as(sockets: Any, model: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """The picture without and with the recorder, and its maps."""
    from contextual_inversion.nodes.comfy.attention_recording import recording

    recorder = AttentionRecorder()
    plain = sampled(model, sockets.clip)
    watched = sampled(recording(model, recorder), sockets.clip)
    return plain, watched, recorder.maps()


def require_maps(maps: Any) -> None:
    assert len(maps.groups) == 7
    for values in maps.values:
        torch.testing.assert_close(values.sum(2), torch.ones_like(values.sum(2)))


def test_containers_without_an_override(newer: Any, sockets: Any) -> None:
    plain, watched, maps = recorded_as(sockets, sockets.model)
    assert torch.equal(watched, plain)
    require_maps(maps)


@pytest.mark.parametrize("containers", [True, False], ids=["container_function", "tensors"])
def test_behind_an_override_of_the_back_end(newer: Any, sockets: Any, containers: bool) -> None:
    """Break A: "no attention was recorded" behind Model Attention Backend."""
    model = sockets.model.clone()
    chosen = newer if containers else lambda *given, **keywords: 0.9 * newer(*given, **keywords)
    model.set_model_optimized_attention(chosen)
    override = model.model_options["transformer_options"]["optimized_attention_override"]
    assert hasattr(override, "container_function") == containers
    plain, watched, maps = recorded_as(sockets, model)
    assert not torch.equal(plain, sampled(sockets.model, sockets.clip))
    assert torch.equal(watched, plain)
    require_maps(maps)


@pytest.fixture
def preferring(newer: Any, sockets: Any) -> Iterator[Any]:
    """A checkpoint that wants another back end in some of its layers."""
    from contextual_inversion.nodes.comfy.attention import cross_attention_layers

    layers = cross_attention_layers(sockets.model.model.diffusion_model, {})[::2]
    for layer in layers:
        layer.module.comfy_attention = Preferred(newer)
    yield sockets
    for layer in layers:
        del layer.module.comfy_attention


def test_the_preferred_back_end_goes_on_computing(preferring: Any) -> None:
    """Break B: any override takes the preferred back end away, so the picture was another one."""
    plain, watched, maps = recorded_as(preferring, preferring.model)
    assert torch.equal(watched, plain)
    require_maps(maps)


def test_a_global_back_end_with_containers_goes_on_computing(
    newer: Any, sockets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.ldm.modules.attention as theirs

    before = sampled(sockets.model, sockets.clip)
    monkeypatch.setattr(theirs, "optimized_attention", newer)
    plain, watched, maps = recorded_as(sockets, sockets.model)
    assert not torch.equal(plain, before)
    assert torch.equal(watched, plain)
    require_maps(maps)


def gradient_of(
    model: Any, probe: Any = None, checkpointing: bool = False, offset: Any = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the UNet says of a noisy picture, and the gradient of its mean square in the context."""
    size = ImageSize(8 * HEIGHT, 8 * WIDTH)
    latents = torch.randn(BATCH, LATENT_CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    with model.session(gradient_checkpointing=checkpointing):
        with torch.no_grad():
            given = model.conditioning(encode_prompts(model, ["a photo of a cat"]), size).expand(BATCH)
        context = (given.context.detach() + offset).requires_grad_()
        out = model.predict(latents, torch.tensor([5, 500]), type(given)(context, given.y), probe)
        out.square().mean().backward()
    return out.detach(), context.grad


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("override", [None, True, False], ids=["none", "container_function", "tensors"])
def test_a_training_gets_its_whole_gradient(newer: Any, sockets: Any, override: Any, checkpointing: bool) -> None:
    """Behind a back end that lets none through, containers or not, it is the finite difference of the loss."""
    from contextual_inversion.nodes.comfy.model import ComfyModel

    model = sockets.model.clone()
    if override is not None:
        model.set_model_optimized_attention(newer if override else int8)
    adapted = ComfyModel(model, sockets.clip, None)
    _, gradient = gradient_of(adapted, checkpointing=checkpointing)
    way, step = gradient / gradient.norm(), 0.02
    ahead, behind = (gradient_of(adapted, offset=sign * step * way)[0].double().square().mean() for sign in (1, -1))
    measured = float(ahead - behind) / (2 * step)
    assert measured == pytest.approx(float(gradient.norm()), rel=0.01)


def test_the_probe_of_a_training_sees_every_layer(preferring: Any) -> None:
    from contextual_inversion.nodes.comfy.model import ComfyModel

    seen: list[int] = []
    model = ComfyModel(preferring.model, preferring.clip, None)
    _, gradient = gradient_of(model, lambda layer, probabilities: seen.append(layer))
    assert seen == list(range(len(model.cross_attention_layers())))
    assert bool(gradient.abs().sum() > 0)
    watched: list[int] = []
    observer = SimpleNamespace(observe=lambda layer, *given: watched.append(layer))
    assert torch.equal(gradient_of(model, observer)[1], gradient_of(model)[1])
    assert watched == seen


# Linear layers since 0.39


@pytest.fixture
def linear_keywords(monkeypatch: pytest.MonkeyPatch, comfyui: Any) -> None:
    """Every Linear takes the keywords of 0.39."""
    import comfy.ops

    plain = comfy.ops.disable_weight_init.Linear.forward

    def forward(
        self: Any, input: Any, *, input_act: Any = None, act_weight: Any = None, act_eps: float = 0.0,
        residual: Any = None, residual_scale: Any = None
    ) -> Any:  # fmt: skip
        if input_act is not None:
            input = torch.nn.functional.gelu(input, approximate="tanh")
        out = plain(self, input)
        return out if residual is None else torch.addcmul(residual, out, residual_scale)

    monkeypatch.setattr(comfy.ops.disable_weight_init.Linear, "forward", forward)


@pytest.mark.parametrize("given", [{"input_act": "gelu_tanh"}, {"residual": 1.0, "residual_scale": 0.5}], ids=str)
def test_a_delta_acts_on_what_a_linear_layer_multiplies(linear_keywords: None, sockets: Any, given: Any) -> None:
    """`residual + scale * W x` with W + dW in W's place; with an activation before W it is refused."""
    from contextual_inversion.nodes.comfy.model import ComfyModel

    model = ComfyModel(sockets.model, sockets.clip, None)
    name, layer = next((name, part) for name, part in model.linear_layers().items() if name.endswith("ff.net.2"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, layer.in_features, generator=generator)
    one = torch.randn(2, 5, layer.out_features, generator=generator)
    keywords = {key: one * value if isinstance(value, float) else value for key, value in given.items()}
    delta = LowRankDelta(
        0.1 * torch.randn(layer.in_features, 2, generator=generator),
        0.1 * torch.randn(2, layer.out_features, generator=generator),
    )
    with model.session(), torch.no_grad():
        plain = layer(x, **keywords)
        with apply_deltas(model, {name: delta}):
            if "input_act" in given:
                with pytest.raises(RuntimeError, match="has folded the activation 'gelu_tanh' into a layer"):
                    layer(x, **keywords)
                return
            found = layer(x, **keywords)
        before = layer.weight.data.clone()
        try:
            layer.weight.data += delta.weight()
            expected = layer(x, **keywords)
        finally:
            layer.weight.data.copy_(before)
    assert not torch.allclose(found, plain)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_recording_and_a_training_with_them(linear_keywords: None, sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.model import ComfyModel

    plain, watched, maps = recorded_as(sockets, sockets.model)
    assert torch.equal(watched, plain)
    require_maps(maps)
    assert bool(gradient_of(ComfyModel(sockets.model, sockets.clip, None))[1].abs().sum() > 0)


# Text encoders


def text_gradient(sockets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the text encoder says of a prompt, and the gradient of its square in the input embeddings."""
    from contextual_inversion.nodes.comfy.model import ComfyModel

    model = ComfyModel(sockets.model, sockets.clip, None)
    encoder = model.text_encoders["clip_l"]
    ids = torch.tensor([[encoder.bos, *encoder.tokenize("a red cat"), encoder.eos]])
    with model.session():
        inputs = encoder.table()[ids].detach().clone().requires_grad_()
        tokens = encoder.encode(inputs, ids).tokens
        tokens.square().mean().backward()
    return tokens.detach(), inputs.grad


def test_a_text_layer_may_be_called_in_another_way(sockets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers still add in place, which autograd must not see; their signature is ComfyUI's own business."""
    import comfy.clip_model
    from comfy.ldm.modules.attention import optimized_attention_for_device

    expected = text_gradient(sockets)

    def layer(self: Any, x: Any, *, causal: Any, options: Any) -> Any:
        x += self.self_attn(self.layer_norm1(x), causal, options["attention"])
        x += self.mlp(self.layer_norm2(x))
        return x

    def encoder(self: Any, x: Any, mask: Any = None, intermediate_output: Any = None) -> Any:
        attention = optimized_attention_for_device(x.device, mask=mask is not None, small_input=True)
        hidden = None
        for index, part in enumerate(self.layers):
            x = part(x, causal=mask, options={"attention": attention})
            if intermediate_output is not None and index == intermediate_output % len(self.layers):
                hidden = x.clone()
        return x, hidden

    monkeypatch.setattr(comfy.clip_model.CLIPLayer, "forward", layer)
    monkeypatch.setattr(comfy.clip_model.CLIPEncoder, "forward", encoder)
    for one, two in zip(text_gradient(sockets), expected, strict=True):
        assert torch.equal(one, two)


# Projections that are joined into one layer (0.45, "Combine Parallel Linear Weights")


def joined(attention: str, names: tuple[str, ...]) -> Any:
    """The demo model with the projections `names` of every `attention` in one layer."""
    from contextual_inversion.nodes.comfy import demo_model

    with torch.inference_mode():
        found = demo_model.load_model_patcher()
    for name, part in list(found.model.diffusion_model.named_modules()):
        if name.endswith(attention):
            for gone in names:
                delattr(part, gone)
            part.to_joined = torch.nn.Linear(4, 4)
    return found


@pytest.mark.parametrize(
    ("attention", "names"), [("attn1", ("to_q", "to_k", "to_v")), ("attn2", ("to_k", "to_v"))], ids=["self", "cross"]
)
def test_joined_projections_are_no_silent_nothing(sockets: Any, attention: str, names: tuple[str, ...]) -> None:
    from contextual_inversion.nodes.comfy.attention import diffusers_names
    from contextual_inversion.nodes.comfy.attention_recording import recording
    from contextual_inversion.nodes.comfy.model import ComfyModel
    from contextual_inversion.nodes.comfy.two_paths import _TwoPaths

    model = joined(attention, names)
    adapted = ComfyModel(model, sockets.clip, None)
    paths = _TwoPaths(diffusers_names(model.model.model_config.unet_config))
    looks = (adapted.linear_layers, adapted.weight_layers, lambda: paths._layers(model.model.diffusion_model))
    for look in looks:
        with pytest.raises(ValueError, match=rf"has no layer \S+{attention}.to_[qkv] of its own, .* joined"):
            look()
    if attention == "attn2":
        with pytest.raises(ValueError, match=r"no part called to_k.*joined or renamed"):
            sampled(recording(model, AttentionRecorder()), sockets.clip, steps=1)


def test_joined_projections_of_a_text_encoder_are_no_silent_nothing(sockets: Any) -> None:
    from contextual_inversion.core.models.low_rank import text_layers
    from contextual_inversion.nodes.comfy import demo_model
    from contextual_inversion.nodes.comfy.model import ComfyModel

    with torch.inference_mode():
        clip = demo_model.load_clip()
    for layer in clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers:
        del layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
        layer.self_attn.qkv_proj = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"has no layer \S+q_proj of its own"):
        text_layers(ComfyModel(sockets.model, clip, None))
