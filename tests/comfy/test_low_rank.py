"""Deltas in a real ComfyUI: as in diffusers, beside ComfyUI's own patches, and through its stock LoRA loader."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import load_bundle, save_bundle
from contextual_inversion.core.models.lora import from_lora, to_lora
from contextual_inversion.core.models.low_rank import (
    LowRankDelta,
    WeightDelta,
    apply_deltas,
    layers_for,
    text_layers,
    text_weight_layers,
)
from contextual_inversion.core.models.protocol import ImageSize, TextToImageModel
from contextual_inversion.core.models.text import encode_prompts

KINDS = ("tiny", "sd1", "sd2", "sdxl")


class Pair:
    """One set of weights in both programs."""

    def __init__(self, diffusers: Any, sockets: Any) -> None:
        from contextual_inversion.nodes.comfy.model import ComfyModel

        self.diffusers, self.sockets = diffusers, sockets
        self.comfy = ComfyModel(sockets.model, sockets.clip, sockets.vae)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, comfyui: Any) -> Iterator[Pair]:
    here = str(Path(__file__).parent)
    sys.path.append(here)
    try:
        import random_models

        yield Pair(*(random_models.tiny() if request.param == "tiny" else random_models.build(request.param)))
    finally:
        sys.path.remove(here)


def picture(model: TextToImageModel) -> torch.Tensor:
    latents = torch.randn(2, model.latent_channels, 16, 16, generator=torch.Generator().manual_seed(9))
    given = model.conditioning(encode_prompts(model, ["a photo of a dog", "snow"]), ImageSize(64, 64))
    return model.predict(latents, torch.tensor([40, 900]), given)


def low_rank(model: TextToImageModel, text: bool = True) -> dict[str, LowRankDelta]:
    """The same deltas for both adapters, large enough to be seen."""
    names = [name for name in model.linear_layers() if ".attn" in name] + (list(text_layers(model)) if text else [])
    found = {}
    for seed, (name, module) in enumerate(layers_for(model, dict.fromkeys(sorted(names))).items()):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(module.in_features, 2, generator=generator) / module.in_features**0.5
        found[name] = LowRankDelta(a, 0.3 * torch.randn(2, module.out_features, generator=generator), 0.7)
    return found


def full_rank(model: TextToImageModel) -> dict[str, WeightDelta]:
    return changed({**model.weight_layers(), **text_weight_layers(model)})


def text_norms(model: TextToImageModel) -> dict[str, WeightDelta]:
    norms = {k: v for k, v in text_weight_layers(model).items() if isinstance(v, torch.nn.LayerNorm)}
    assert {name.rpartition(".")[2] for name in norms} == {"layer_norm1", "layer_norm2", "final_layer_norm"}
    return changed(norms)


def changed(layers: dict[str, torch.nn.Module]) -> dict[str, WeightDelta]:
    """A whole change of each layer, of its bias too where that is 0."""
    found = {}
    for seed, (name, module) in enumerate(sorted(layers.items())):
        generator = torch.Generator().manual_seed(seed)
        size = 0.2 * module.weight.detach().abs().mean()
        parts = (module.weight, module.bias)
        deltas = (None if p is None else size * torch.randn(p.shape, generator=generator) for p in parts)
        found[name] = WeightDelta(*deltas)
    return found


def agree(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    difference = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    print(f"differs by {difference:.1e}")
    assert difference < tolerance


def test_layers_have_the_same_names(pair: Pair) -> None:
    ours, theirs = pair.diffusers, pair.comfy
    assert set(ours.weight_layers()) == set(theirs.weight_layers())
    # diffusers ships SD 2's text encoder without its last layer, which nothing reads.
    for layers in (text_layers, text_weight_layers):
        last = set(layers(theirs)) - set(layers(ours))
        assert all(name.startswith("clip_h.text_model.encoder.layers.2.") for name in last)
        assert set(layers(ours)) <= set(layers(theirs))
    mine, other = ({**one.weight_layers(), **text_weight_layers(one)} for one in (ours, theirs))
    assert all(mine[name].weight.shape == other[name].weight.shape for name in mine)
    assert {name for name, part in text_weight_layers(ours).items() if isinstance(part, torch.nn.Linear)} == set(
        text_layers(ours)
    )


@pytest.mark.parametrize("make", [low_rank, full_rank, text_norms])
def test_the_adapters_agree(pair: Pair, make: Any) -> None:
    found = []
    for model in (pair.diffusers, pair.comfy):
        with torch.inference_mode(), model.session():
            plain = picture(model).detach()
            with apply_deltas(model, make(pair.diffusers)):
                found.append(picture(model).detach())
            assert torch.equal(picture(model).detach(), plain)
        assert not torch.allclose(found[-1], plain, atol=1e-3)
    agree(found[1], found[0])


@pytest.mark.parametrize("make", [low_rank, text_norms])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapters_agree_on_gradients(pair: Pair, make: Any, checkpointing: bool) -> None:
    found = []
    for model in (pair.diffusers, pair.comfy):
        deltas = make(pair.diffusers)
        parts = ("a", "b") if make is low_rank else ("weight", "bias")
        leaves = [getattr(delta, part).requires_grad_() for delta in deltas.values() for part in parts]
        with torch.inference_mode(), model.session(gradient_checkpointing=checkpointing):
            with apply_deltas(model, deltas):
                loss = picture(model).square().mean()
            found.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    scale = max(float(g.abs().max()) for g in found[0] if g is not None)
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).abs().max() < 1e-4 * scale


def learned(model: TextToImageModel, lora: dict[str, torch.Tensor]) -> Concept:
    vectors = {name: encoder.table()[320:321].float().cpu().clone() for name, encoder in model.text_encoders.items()}
    return Concept("thing", "dog", vectors, lora=lora)


@pytest.mark.parametrize("make", [low_rank, full_rank, text_norms])
@torch.inference_mode()
def test_the_stock_lora_loader_does_what_the_deltas_do(pair: Pair, make: Any, tmp_path: Path, caplog: Any) -> None:
    """From a bundle on disk, strength 1: the same prediction as in memory, and no key is left over."""
    import comfy.sd
    import comfy.utils

    deltas = make(pair.diffusers)
    lora = to_lora(pair.comfy, deltas)
    assert lora.keys() == to_lora(pair.diffusers, deltas).keys()
    path = save_bundle(learned(pair.comfy, lora), tmp_path)
    with apply_deltas(pair.comfy, deltas):
        expected = picture(pair.comfy)
    plain = picture(pair.comfy)

    stored = comfy.utils.load_torch_file(str(path), safe_load=True)
    with caplog.at_level("WARNING"):
        model, clip = comfy.sd.load_lora_for_models(pair.sockets.model, pair.sockets.clip, stored, 1.0, 1.0)
    left_over = [record.getMessage() for record in caplog.records if "not loaded" in record.getMessage()]
    assert all("bundle_emb." in message for message in left_over), left_over
    patched = type(pair.comfy)(model, clip, pair.sockets.vae)
    agree(picture(patched), expected, 2e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)

    back = from_lora(pair.comfy, load_bundle(path).lora)
    with apply_deltas(pair.comfy, back):
        agree(picture(pair.comfy), expected, 1e-5)


@pytest.mark.parametrize("make", [full_rank, text_norms])
@torch.inference_mode()
def test_the_clip_of_apply_concept_says_what_the_diffusers_adapter_says_with_the_concept(pair: Pair, make: Any) -> None:
    """Whole weights of the text encoders and their norms alone, behind the word itself."""
    from contextual_inversion.nodes.concepts import ApplyConcept

    clip, theirs = pair.sockets.clip, pair.diffusers
    concept = learned(theirs, to_lora(theirs, make(theirs)))
    before = {key: value.clone() for key, value in clip.cond_stage_model.state_dict().items()}
    _, applied = ApplyConcept.execute(pair.sockets.model, clip, concept, 1.0, 1.0, "").args
    ((tokens, more),) = applied.encode_from_tokens_scheduled(applied.tokenize("a photo of a <thing> in snow"))

    def said(deltas: Any) -> list[torch.Tensor]:
        with apply_deltas(theirs, deltas):
            found = encode_prompts(theirs, ["a photo of a {} in snow"], vectors=concept.vectors)
        pooled = [one.pooled for one in found.values() if one.pooled is not None and len(found) > 1]
        return [torch.cat([one.tokens for one in found.values()], dim=-1), *pooled]

    expected, plain = said(from_lora(theirs, concept.lora)), said({})
    for ours, there, without in zip((tokens, more["pooled_output"]), expected, plain, strict=False):
        agree(ours, there)
        assert not torch.allclose(there, without, atol=1e-2)
    assert len(expected) == len(pair.diffusers.text_encoders)
    # What came in still says what it said, once ComfyUI has taken the patches of the copy off again.
    clip.load_model()
    assert all(torch.equal(value, before[key]) for key, value in clip.cond_stage_model.state_dict().items())


@torch.inference_mode()
def test_a_loaded_lora_stays_in_force(pair: Pair) -> None:
    """Ours on top of a stock LoRA is the sum of both."""
    import comfy.sd

    one = {name: replace(delta, scale=0.5 * delta.scale) for name, delta in low_rank(pair.diffusers).items()}
    model, clip = comfy.sd.load_lora_for_models(
        pair.sockets.model, pair.sockets.clip, to_lora(pair.comfy, one), 1.0, 1.0
    )
    patched = type(pair.comfy)(model, clip, pair.sockets.vae)
    with apply_deltas(patched, one):
        both = picture(patched)
    with apply_deltas(pair.comfy, {name: replace(delta, scale=2 * delta.scale) for name, delta in one.items()}):
        agree(picture(pair.comfy), both, 2e-4)


@torch.inference_mode()
def test_what_a_graph_did_to_a_model_is_told_by_content(pair: Pair) -> None:
    """Two LoRAs of one strength are not the same model: neither may go on with the other's training."""
    import comfy.sd

    def applied(deltas: dict[str, LowRankDelta], strength: float = 1.0) -> str:
        lora = to_lora(pair.comfy, deltas)
        model, clip = comfy.sd.load_lora_for_models(pair.sockets.model, pair.sockets.clip, lora, strength, strength)
        return type(pair.comfy)(model, clip, pair.sockets.vae).applied

    one = low_rank(pair.diffusers)
    name = next(iter(one))
    other = {**one, name: LowRankDelta(one[name].a, one[name].b + 1e-3, one[name].scale)}
    assert pair.comfy.applied == ""
    assert applied(one) == applied(dict(one)) != ""
    assert len({applied(one), applied(other), applied(one, 0.5)}) == 3
    shallower = pair.sockets.clip.clone()
    shallower.clip_layer(-1 if shallower.layer_idx == -2 else -2)
    assert type(pair.comfy)(pair.sockets.model, shallower, pair.sockets.vae).applied != ""


def test_hooks_are_gone_after_an_error(pair: Pair) -> None:
    modules = [*pair.sockets.model.model.modules(), *pair.sockets.clip.patcher.model.modules()]
    before = [len(part._forward_hooks) for part in modules]

    def fail() -> None:
        with apply_deltas(pair.comfy, low_rank(pair.comfy)):
            assert [len(part._forward_hooks) for part in modules] != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [len(part._forward_hooks) for part in modules] == before
