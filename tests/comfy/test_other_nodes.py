"""A training on a model that other nodes have patched: the gradient is exact, with and without checkpointing, or the
training is refused with words. Over ComfyUI's own nodes, and over patches that are made to go wrong."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny.config import LATENT_CHANNELS

HEIGHT, WIDTH, BATCH = 16, 16, 2
NODES = {
    "FreeU": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "HyperTile": {"tile_size": 32, "swap_size": 2, "max_depth": 3, "scale_depth": False},
    "TomePatchModel": {"ratio": 0.5},
    "PatchModelAddDownscale": {
        "block_number": 3,
        "downscale_factor": 2.0,
        "start_percent": 0.0,
        "end_percent": 1.0,
        "downscale_after_skip": True,
        "downscale_method": "bicubic",
        "upscale_method": "bicubic",
    },
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "NAGuidance": {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 2.5},
    "RescaleCFG": {"multiplier": 0.7},
    "Epsilon Scaling": {"scaling_factor": 1.01},
    "TemporalScoreRescaling": {"tsr_k": 0.95, "tsr_sigma": 1.0},
    "LazyCache": {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False},
}
"""ComfyUI's nodes that patch a UNet, and what they are given."""


@pytest.fixture(scope="module")
def sockets(comfyui: Any) -> Any:
    from contextual_inversion.nodes.comfy import demo_model

    with torch.inference_mode():
        return SimpleNamespace(model=demo_model.load_model_patcher(), clip=demo_model.load_clip())


def patched(comfyui: Any, model: Any, node: str, inputs: dict[str, Any]) -> Any:
    """What one of ComfyUI's nodes makes of a model."""
    found = comfyui.nodes.NODE_CLASS_MAPPINGS[node]
    call = getattr(found, "execute", None) or getattr(found(), found.FUNCTION)
    with torch.inference_mode():
        result = call(model=model, **inputs)
    return (result.args if hasattr(result, "args") else result)[0]


def pass_through(model: Any, context: torch.Tensor) -> torch.Tensor:
    """A loss of what the UNet says of a noisy picture."""
    from contextual_inversion.core.models.protocol import Conditioning

    latents = torch.randn(BATCH, LATENT_CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(11)  # some patches draw
    return model.predict(latents, torch.tensor([400, 500]), Conditioning(context)).double().square().mean()


def gradient(sockets: Any, patcher: Any, checkpointing: bool) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient in the context."""
    from contextual_inversion.nodes.comfy.model import ComfyModel

    model = ComfyModel(patcher, sockets.clip, None)
    with model.session(gradient_checkpointing=checkpointing):
        with torch.no_grad():
            size = ImageSize(8 * HEIGHT, 8 * WIDTH)
            given = model.conditioning(encode_prompts(model, ["a photo of a cat"]), size).expand(BATCH)
        context = given.context.detach().clone().requires_grad_()
        loss = pass_through(model, context)
        loss.backward()
        return float(loss.detach()), context.grad


def require_finite_difference(sockets: Any, patcher: Any, found: torch.Tensor) -> None:
    """The gradient is that of what is computed, along itself."""
    from contextual_inversion.nodes.comfy.model import ComfyModel

    model = ComfyModel(patcher, sockets.clip, None)
    way, step = found / found.norm(), 0.002
    with model.session(), torch.no_grad():
        size = ImageSize(8 * HEIGHT, 8 * WIDTH)
        context = model.conditioning(encode_prompts(model, ["a photo of a cat"]), size).expand(BATCH).context
        ahead, behind = (float(pass_through(model, context + sign * step * way)) for sign in (1, -1))
    assert (ahead - behind) / (2 * step) == pytest.approx(float(found.norm()), rel=0.02)


@pytest.mark.parametrize("node", NODES)
def test_comfyuis_own_patches_have_one_gradient(comfyui: Any, sockets: Any, node: str) -> None:
    model = patched(comfyui, sockets.model, node, NODES[node])
    loss, plain = gradient(sockets, model, checkpointing=False)
    again, checkpointed = gradient(sockets, model, checkpointing=True)
    assert again == loss
    torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-9)
    if node != "TomePatchModel":  # which tokens that merges, and with it the loss, jumps within any finite difference
        require_finite_difference(sockets, model, plain)


def test_every_node_of_the_kind_is_tried(comfyui: Any) -> None:
    """A newer ComfyUI may bring another one."""
    infos = comfyui.nodes.NODE_CLASS_MAPPINGS
    assert {name for name, node in infos.items() if getattr(node, "CATEGORY", "") == "model/patch/unet"} <= set(NODES)


def writes_block(h: torch.Tensor, skip: torch.Tensor, options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """As FreeU_V2 does it, and into the skip connection, which a checkpointed block still needs as its input."""
    if h.shape[1] < 64:
        return h, skip
    skip[:, : skip.shape[1] // 2] = skip[:, : skip.shape[1] // 2] * skip.mean(1, keepdim=True)
    h.mul_(1.0 + 0.1 * h.mean(1, keepdim=True).tanh())
    return h, skip


def writes_attention(out: torch.Tensor, options: Any) -> torch.Tensor:
    gate = out * out.mean(-1, keepdim=True)
    out[..., :8] = out[..., :8] * gate[..., :8] * 40
    out.add_(gate)
    return out


def writes_keys(query: torch.Tensor, context: torch.Tensor, value: torch.Tensor, options: Any) -> Any:
    query = query * query.sigmoid()
    query[:, ::2] = query[:, ::2] * query[:, 1::2] * 3
    return query, context, value


def put(kind: str, patch: Callable[..., Any]) -> Callable[[Any], None]:
    return lambda model: model.set_model_patch(patch, kind)


IN_PLACE = {
    "output_block_patch": put("output_block_patch", writes_block),
    "attn1_output_patch": put("attn1_output_patch", writes_attention),
    "attn2_output_patch": put("attn2_output_patch", writes_attention),
    "attn1_patch": put("attn1_patch", writes_keys),
    "attn2_patch": put("attn2_patch", writes_keys),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_patches_that_write_in_place_have_the_exact_gradient(sockets: Any, kind: str) -> None:
    model = sockets.model.clone()
    IN_PLACE[kind](model)
    loss, plain = gradient(sockets, model, checkpointing=False)
    assert loss != gradient(sockets, sockets.model, checkpointing=False)[0]
    again, checkpointed = gradient(sockets, model, checkpointing=True)
    assert again == loss
    torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-9)
    require_finite_difference(sockets, model, plain)


def replaces(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Any) -> torch.Tensor:
    """A replacement whose own code spoils what it needs."""
    gate = query * query
    query[:, ::2] = query[:, ::2] * 0.5
    return query + gate


def test_a_replacement_that_writes_in_place_is_exact_or_refused(sockets: Any) -> None:
    """There is no room for a copy there; autograd sees it, and inside of a checkpointed block so do we."""
    model = sockets.model.clone()
    model.set_model_attn2_replace(replaces, "input", 1)
    model.set_model_attn2_replace(replaces, "output", 3)
    with pytest.raises(
        RuntimeError, match=r"patches: attn2\) changes in place .* connect the model .* before"
    ) as error:
        gradient(sockets, model, checkpointing=False)
    assert len(str(error.value)) < 400
    _, checkpointed = gradient(sockets, model, checkpointing=True)
    require_finite_difference(sockets, model, checkpointed)


# Wrappers around the UNet


def caching(model: Any) -> None:
    """One that remembers the first pass and gives it out ever after."""
    import comfy.patcher_extension

    kept: list[torch.Tensor] = []

    def wrapper(run: Any, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if not kept:
            kept.append(run(*arguments, **keywords).detach())
        return kept[0]

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "some_cache", wrapper)


def test_easy_cache_is_refused_with_words(comfyui: Any, sockets: Any) -> None:
    """It was `KeyError: 'uuids'`. With what it asks for it would skip steps of the training."""
    inputs = {"reuse_threshold": 0.2, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    model = patched(comfyui, sockets.model, "EasyCache", inputs)
    with pytest.raises(
        RuntimeError, match=r"\(easycache\) does not work outside of a sampler: .*uuids.* before"
    ) as error:
        gradient(sockets, model, checkpointing=False)
    assert len(str(error.value)) < 400


def test_a_wrapper_that_keeps_the_unet_from_running_is_refused(sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.model import ComfyModel

    patcher = sockets.model.clone()
    caching(patcher)
    model = ComfyModel(patcher, sockets.clip, None)
    with model.session():
        size = ImageSize(8 * HEIGHT, 8 * WIDTH)
        context = model.conditioning(encode_prompts(model, ["a cat"]), size).expand(BATCH).context
        pass_through(model, context)
        with pytest.raises(RuntimeError, match=r"\(some_cache\) kept it from running"):
            pass_through(model, context)


def test_a_wrapper_that_does_run_it_stays_in_force(sockets: Any) -> None:
    import comfy.patcher_extension

    patcher = sockets.model.clone()
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    patcher.add_wrapper_with_key(kind, "half", lambda run, *given, **more: 0.5 * run(*given, **more))
    loss, _ = gradient(sockets, patcher, checkpointing=True)
    assert loss == pytest.approx(gradient(sockets, sockets.model, checkpointing=False)[0] / 4)


def test_errors_of_ours_inside_a_session_stay_as_they_are(sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.model import ComfyModel

    with (
        pytest.raises(RuntimeError, match=r"^of another kind$"),
        ComfyModel(sockets.model, sockets.clip, None).session(),
    ):
        raise RuntimeError("of another kind")


def test_freeu_before_train_concept_in_a_graph(run_graph: Any) -> None:
    names = ("train", "recipe", "continue_interrupted", "preview_every", "preview_prompt")
    fixed = dict(zip(names, ("textual inversion", "auto (for this model)", False, 0, "a photo of a {}"), strict=True))
    numbers = {"steps": 2, "learning_rate": 0.02, "batch": 1, "vectors": 1, "seed": 3}
    sockets = {"model": ["freeu", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    images = {"concept": "castle", "count": 1, "background": "grass", "seed": 0}
    training = {**sockets, "class_word": "house", "name": "keep", **fixed, **numbers, "gradient_checkpointing": True}
    graph = {
        "model": {"class_type": "ContextualInversionLoadDemoModel", "inputs": {}},
        "freeu": {"class_type": "FreeU_V2", "inputs": {"model": ["model", 0], **NODES["FreeU_V2"]}},
        "images": {"class_type": "ContextualInversionDemoImages", "inputs": images},
        "train": {"class_type": "ContextualInversionTrainConcept", "inputs": training},
    }
    run = run_graph(graph, keep={"concept": ("train", 0)})
    assert run.status == "success", run.error
    graph["freeu"] = {
        "class_type": "EasyCache",
        "inputs": {
            "model": ["model", 0],
            "reuse_threshold": 0.2,
            "start_percent": 0.0,
            "end_percent": 1.0,
            "verbose": False,
        },
    }
    run = run_graph(graph, keep={"concept": ("train", 0)})
    assert run.status == "error"
    assert "(easycache) does not work outside of a sampler" in run.error["exception_message"]
