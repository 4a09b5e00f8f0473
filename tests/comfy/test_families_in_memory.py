"""Where the weights of a family are while it trains, on a simulated GPU, and that it is the same training wherever."""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("diffusers")
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "core" / "models")]

from simulated_cuda import CUDA, simulated_cuda

from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train

LARGE, SMALL = 2**36, 2**20


@pytest.fixture(scope="module", params=["z_image", "flux"])
def sockets(comfyui, request):
    from random_families import build

    return build(request.param)


@contextmanager
def on_gpu(sockets, memory):
    import comfy.model_management as management

    def free_memory(device=None, torch_free_too=False):
        return (LARGE, LARGE) if torch_free_too else LARGE

    management.unload_all_models()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(management, "get_free_memory", free_memory))
        stack.enter_context(mock.patch.object(management, "get_total_memory", return_value=memory))
        stack.enter_context(mock.patch.object(management, "vram_state", management.VRAMState.NORMAL_VRAM))
        for patcher in (sockets.model, sockets.vae.patcher, sockets.clip.patcher):
            stack.enter_context(mock.patch.object(patcher, "load_device", CUDA))
        stack.enter_context(mock.patch.object(sockets.vae, "device", CUDA))
        yield stack.enter_context(simulated_cuda())


def places(patcher):
    return Counter(value.device.type for value in patcher.model.parameters())


def trained(sockets, method, seen=None, **changes):
    from contextual_inversion.nodes.comfy.adapting import adapted

    with torch.inference_mode():
        model = adapted(sockets.model, sockets.clip, sockets.vae)
        settings = TrainSettings("dog", steps=3, batch=1, resolution=64, method=method, **changes)
        with train(model, torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)), settings) as run:
            *_, finished = (noted(sockets, event, seen) for event in run)
    return finished.concept


def noted(sockets, event, seen):
    if seen is not None:
        seen.append((places(sockets.model), places(sockets.clip.patcher)))
    return event


def same(one, other):
    assert one.vectors.keys() == other.vectors.keys()
    assert all(torch.equal(value, other.vectors[name]) for name, value in one.vectors.items())
    assert (one.lora or {}).keys() == (other.lora or {}).keys()
    assert all(torch.equal(value, other.lora[name]) for name, value in (one.lora or {}).items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_word_learns_the_same_where_text_encoders_are_streamed(sockets, checkpointing):
    import comfy.model_management as management

    concepts = []
    for memory, place in ((LARGE, "cuda"), (SMALL, "cpu")):
        seen = []
        with on_gpu(sockets, memory):
            management.load_models_gpu([sockets.clip.patcher])  # as a node before has left it
            assert set(places(sockets.clip.patcher)) == {"cuda"}
            concepts.append(trained(sockets, "word-lora", seen, rank=2, gradient_checkpointing=checkpointing))
        denoiser, text = seen[1]
        assert (set(denoiser), set(text)) == ({"cuda"}, {place})
        assert set(places(sockets.model)) == set(places(sockets.clip.patcher)) == {"cpu"}
    same(*concepts)


def test_text_encoders_rest_where_nothing_learns_in_them(sockets, monkeypatch):
    """And are asked once for each prompt."""
    from contextual_inversion.nodes.comfy.families.encoders import FamilyTextEncoder

    asked, encode = Counter(), FamilyTextEncoder.encode

    def counted(encoder, inputs, ids):
        asked[encoder.name] += 1
        return encode(encoder, inputs, ids)

    monkeypatch.setattr(FamilyTextEncoder, "encode", counted)
    seen, names = [], [part.name for part in parts(sockets)]
    with on_gpu(sockets, LARGE):
        trained(sockets, "dreambooth-lora", seen, rank=2)
    assert all(set(text) == {"cpu"} and set(denoiser) == {"cuda"} for denoiser, text in seen[:-1])
    assert asked == dict.fromkeys(names, 1)


def test_a_text_encoder_that_learns_nothing_is_asked_once(sockets, monkeypatch):
    from contextual_inversion.nodes.comfy.families.encoders import FamilyTextEncoder

    asked, encode = Counter(), FamilyTextEncoder.encode

    def counted(encoder, inputs, ids):
        asked[encoder.name] += 1
        return encode(encoder, inputs, ids)

    names = [part.name for part in parts(sockets)]
    every = trained(sockets, "ti", encoders=(names[-1],))
    monkeypatch.setattr(FamilyTextEncoder, "encode", counted)
    same(every, trained(sockets, "ti", encoders=(names[-1],)))
    assert asked == {**dict.fromkeys(names, 1), names[-1]: 3}


def parts(sockets):
    from contextual_inversion.nodes.comfy.families.encoders import parts_of

    return parts_of(sockets.clip)
