"""ComfyUI's models on a GPU, as far as that can be told without one: wherever it keeps each, and however it attends."""

import gc
import sys
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parents[1] / "core" / "models"))

from simulated_cuda import CPU, CUDA, simulated_cuda

from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.networks.contextualizer import (
    Contextualizer,
    ContextualizerShape,
    EncoderIdentity,
)
from contextual_inversion.core.prompts.rich import ListedPrompts
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.regularizers.mlm import MLMRegularizer
from contextual_inversion.core.training.run.events import Step
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train

PROMPTS = ("a {} in the snow", "the {} at sea")
MEMORY = 2**33


@pytest.fixture
def sockets(comfyui, request):
    here = str(Path(__file__).parent)
    sys.path.append(here)  # pytest's importlib mode leaves a test's own folder out of the path
    try:
        from random_models import build
    finally:
        sys.path.remove(here)
    _, found = build(getattr(request, "param", "sd1"))
    return found


def adapted(sockets):
    from contextual_inversion.nodes.comfy.model import ComfyModel

    return ComfyModel(sockets.model, sockets.clip, sockets.vae)


@contextmanager
def on_gpu(sockets, clip=CUDA, vram="NORMAL_VRAM"):
    """`sockets` on the simulated device, the text encoders on `clip`. Yields what waited for it."""
    import comfy.model_management as management

    def free_memory(device=None, torch_free_too=False):
        return (MEMORY, MEMORY) if torch_free_too else MEMORY

    management.unload_all_models()
    sockets.clip.patcher.detach()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(management, "get_free_memory", free_memory))
        stack.enter_context(mock.patch.object(management, "vram_state", management.VRAMState[vram]))
        sockets.model.load_device = sockets.vae.device = sockets.vae.patcher.load_device = CUDA
        sockets.clip.patcher.load_device = clip
        yield stack.enter_context(simulated_cuda())


def contextualizer(encoder):
    named = {encoder.eos, *(token for prompt in PROMPTS for token in encoder.tokenize(prompt.replace("{}", "")))}
    with torch.inference_mode(False):
        torch.manual_seed(0)
        shape = ContextualizerShape(attentions=1, heads=2, hidden=1, positions=16)
        return Contextualizer(EncoderIdentity.of(encoder), shape, sorted(named))


def trained(sockets, waits):
    """The last event of a training in a node, and what waited for the device between its first and last step."""
    with torch.inference_mode():
        model = adapted(sockets)
        psi = [contextualizer(encoder) for encoder in model.text_encoders.values()]
        regularizers = [
            CoReRegularizer(PROMPTS, embedding_weight=0.1, attention_weight=1.0),
            MLMRegularizer(psi, ListedPrompts(PROMPTS), weight=0.1, rho=0.9, batch=2, beside_class=False),
        ]
        settings = TrainSettings(class_word="dog", steps=3, batch=2, log_every=3, templates=PROMPTS, resolution=64)
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        with train(model, images, settings, regularizers=regularizers) as run:
            seen = [(event, len(waits)) for event in run]
    steps = [count for event, count in seen if isinstance(event, Step)]
    return seen[-1][0], waits[steps[0] : steps[-2]]


def places(patcher):
    return Counter(value.device.type for value in patcher.model.parameters())


@pytest.mark.parametrize("clip", [CUDA, CPU], ids=["clip-on-gpu", "clip-on-cpu"])
@pytest.mark.parametrize("sockets", ["sd1", "sdxl"], indirect=True)
def test_a_training_is_the_same_wherever_the_models_are(sockets, clip):
    expected, _ = trained(sockets, [])
    with on_gpu(sockets, clip) as waits:
        found, waited = trained(sockets, waits)
        assert set(places(sockets.model)) == set(places(sockets.clip.patcher)) == {"cpu"}  # what it was before
    for name, value in expected.concept.vectors.items():
        assert torch.equal(found.concept.vectors[name], value)
    if clip == CUDA:
        assert waited == []


def test_training_has_whole_weights_where_comfyui_was_told_to_keep_none_there(sockets):
    with on_gpu(sockets, vram="NO_VRAM"), torch.inference_mode():
        with adapted(sockets).session():
            assert set(places(sockets.model)) == {"cuda"}
            assert not sockets.model.model.model_lowvram
        assert set(places(sockets.model)) == {"cpu"}


def gradient(sockets):
    """Of a prediction, to what cross-attention attends to."""
    model = adapted(sockets)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, model.latent_channels, 8, 8, generator=generator)
    with model.session():
        with torch.no_grad():
            given = model.conditioning(encode_prompts(model, PROMPTS, words="dog"), ImageSize(64, 64))
        context = given.context.requires_grad_()
        output = model.predict(latents, torch.tensor([300, 700]), given)
        return torch.autograd.grad(output.square().sum(), context)[0]


def without_gradient(attention):
    """As a back end whose kernels autograd knows nothing of."""

    def attention_sage(*arguments, **keywords):
        return attention(*arguments, **keywords).detach()

    return attention_sage


def test_gradients_are_whole_where_the_attention_of_comfyui_has_none(sockets):
    from comfy.ldm.modules import attention

    with mock.patch.object(attention, "optimized_attention", attention.attention_pytorch):
        expected = gradient(sockets)
    sage = attention.wrap_attn(without_gradient(attention.attention_pytorch))
    with mock.patch.object(attention, "optimized_attention", sage):
        assert torch.equal(gradient(sockets), expected)


def test_gradients_are_whole_where_another_node_has_put_such_an_attention(sockets):
    from comfy.ldm.modules import attention

    used = []

    def override(function, *arguments, **keywords):
        used.append(function)
        return without_gradient(attention.attention_pytorch)(*arguments, **keywords)

    with mock.patch.object(attention, "optimized_attention", attention.attention_pytorch):
        expected = gradient(sockets)
        sockets.model = sockets.model.clone()
        sockets.model.model_options["transformer_options"]["optimized_attention_override"] = override
        assert torch.equal(gradient(sockets), expected)
    assert used


def test_another_nodes_attention_stays_in_force_where_gradients_go_through_it(sockets):
    from comfy.ldm.modules import attention

    before = gradient(sockets)
    sockets.model = sockets.model.clone()
    sockets.model.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, *arguments, **keywords: 0.5 * attention.attention_pytorch(*arguments, **keywords)
    )
    assert not torch.allclose(gradient(sockets), before)


@torch.inference_mode()
def test_pictures_are_looked_at_on_the_device_also_with_weights_that_never_lie_there(comfyui, monkeypatch):
    import comfy.clip_vision
    import comfy.model_management as management

    from contextual_inversion.nodes.comfy.clip_vision import image_encoder_of

    numbers = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    numbers |= {"image_size": 32, "patch_size": 8, "num_channels": 3, "projection_dim": 32, "layer_norm_eps": 1e-5}
    config = {**numbers, "hidden_act": "quick_gelu", "model_type": "clip_vision_model"}
    vision = comfy.clip_vision.ClipVisionModel(config)
    for value in vision.model.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = image_encoder_of(vision).features(picture)
    monkeypatch.setattr(management, "load_model_gpu", lambda patcher: None)
    vision.load_device = CUDA
    with simulated_cuda():
        looking = image_encoder_of(vision)
        found = looking.features(picture.to(looking.device))
        assert found.vectors.device == found.grid.device == CUDA
        assert torch.equal(found.vectors.cpu(), expected.vectors)


def patched_demo(monkeypatch, patcher_class):
    """The demo model's MODEL and CLIP in patchers of this kind, with a patch on a weight of each."""
    import comfy.model_patcher

    from contextual_inversion.nodes.comfy import demo_model

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    with torch.inference_mode():
        model, clip = demo_model.load_model_patcher().clone(), demo_model.load_clip().clone()
        for patcher, ending in ((model, "input_blocks.0.0.weight"), (clip.patcher, "fc1.weight")):
            key, value = next(item for item in patcher.model.state_dict().items() if item[0].endswith(ending))
            patcher.add_patches({key: (torch.full_like(value, 0.1),)})
    return SimpleNamespace(model=model, clip=clip, vae=None)


def streaming():
    import comfy.model_patcher

    class Streaming(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    return Streaming


def test_streamed_weights_are_trained_on_as_a_copy_with_the_graphs_patches(comfyui, monkeypatch):
    import comfy.model_patcher

    expected = gradient(patched_demo(monkeypatch, comfy.model_patcher.ModelPatcher))
    streamed = patched_demo(monkeypatch, streaming())
    before = {name: value.clone() for name, value in streamed.model.model.state_dict().items()}
    assert torch.equal(gradient(streamed), expected)
    assert all(torch.equal(value, before[name]) for name, value in streamed.model.model.state_dict().items())
    assert not adapted(streamed).patcher.is_dynamic()


def test_the_copy_of_streamed_weights_is_gone_with_its_last_user(comfyui, monkeypatch):
    model = adapted(patched_demo(monkeypatch, streaming()))
    encoder = model.text_encoders["clip_l"]
    copies = [weakref.ref(model.patcher.model), weakref.ref(encoder.clip)]
    gc.collect()
    gc.disable()
    try:
        with model.session():
            pass
        del model
        assert [copy() is None for copy in copies] == [True, False]
        with torch.no_grad():  # it still loads itself
            assert encoder.encode(torch.zeros(1, 3, encoder.width), torch.zeros(1, 3).long()).tokens.shape[1] == 3
        del encoder
        assert [copy() is None for copy in copies] == [True, True]
    finally:
        gc.enable()


def test_streamed_weights_of_an_unknown_origin_are_refused_with_a_way_out(comfyui):
    from contextual_inversion.nodes.comfy.weights import plain_patcher

    patcher = SimpleNamespace(is_dynamic=lambda: True, cached_patcher_init=None, model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="--disable-dynamic-vram"):
        plain_patcher(patcher)
