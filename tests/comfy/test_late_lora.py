"""ApplyConcept with a LoRA that begins later, in a real ComfyUI: what stock parts draw in two halves."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.models.lora import to_lora
from contextual_inversion.core.models.low_rank import LowRankDelta, WeightDelta, text_layers

PROMPT = "a photo of a <thing> in the snow"
STEPS = 4


class World:
    """MODEL and CLIP, and a concept with a LoRA in the UNet and in the text encoders."""

    def __init__(self, diffusers, sockets):
        from contextual_inversion.nodes.comfy.model import ComfyModel

        self.channels, self.sockets = diffusers.latent_channels, sockets
        comfy = ComfyModel(sockets.model, sockets.clip, sockets.vae)
        seeds = torch.Generator().manual_seed(3)
        deltas = {}
        for name, module in [*sorted(diffusers.linear_layers().items()), *sorted(text_layers(comfy).items())]:
            if "attn" in name:
                a = torch.randn(module.in_features, 2, generator=seeds) / module.in_features**0.5
                deltas[name] = LowRankDelta(a, 0.3 * torch.randn(2, module.out_features, generator=seeds), 0.7)
        name, norm = next((name, one) for name, one in sorted(diffusers.weight_layers().items()) if "norm2" in name)
        deltas[name] = WeightDelta(0.1 * torch.randn(norm.weight.shape, generator=seeds), None)
        vectors = {
            name: encoder.table()[[1929]].float().cpu() + torch.randn(1, encoder.width, generator=seeds)
            for name, encoder in comfy.text_encoders.items()
        }
        self.lora = to_lora(comfy, deltas)
        self.concept = Concept("thing", "dog", vectors, lora=self.lora)

    def applied(self, concept=None, strengths=(1.0, 1.0), **options):
        from contextual_inversion.nodes.concepts import ApplyConcept

        made = ApplyConcept.execute(
            self.sockets.model, self.sockets.clip, concept or self.concept, *strengths, "", **options
        )
        return made.args

    def sample(self, model, clip, latent=None, **part):
        import comfy.sample

        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in (PROMPT, ""))
        start = torch.zeros(1, self.channels, 16, 16) if latent is None else latent
        noise = comfy.sample.prepare_noise(start, 5) if latent is None else torch.zeros_like(start)
        return comfy.sample.sample(
            model, noise, STEPS, 3.0, "euler", "normal", positive, negative, start, disable_pbar=True, seed=5, **part
        )


@pytest.fixture(scope="module", params=["tiny", "sd1", "sdxl"])
def world(request, comfyui):
    import random_models

    with torch.inference_mode():
        return World(*(random_models.tiny() if request.param == "tiny" else random_models.build(request.param)))


def near(ours, theirs):
    assert float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()) < 2e-4


def apart(ours, theirs):
    assert float((ours - theirs).abs().max() / theirs.abs().max()) > 1e-3


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, 0.7), (1.0, 0.0)])
@torch.inference_mode()
def test_it_is_the_plain_model_for_the_first_steps_and_the_stock_lora_for_the_others(world, strengths):
    """Two samplings of stock parts, the second one going on from the first."""
    import comfy.samplers

    sampling = world.sockets.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    at = 0.3
    first = int((sigmas[:-1] > float(sampling.percent_to_sigma(at))).sum())
    assert 0 < first < STEPS
    whole, clip = world.applied(strengths=strengths)
    model, late_clip = world.applied(strengths=strengths, start_percent=at)
    begun = world.sample(world.sockets.model, clip, last_step=first, force_full_denoise=False)
    expected = world.sample(whole, clip, latent=begun, start_step=first)
    found = world.sample(model, late_clip)
    near(found, expected)
    apart(found, world.sample(whole, clip))
    apart(found, world.sample(world.sockets.model, clip))
    # Ours is a clone: what came in knows nothing of it.
    assert torch.equal(world.sample(world.sockets.model, clip, last_step=first, force_full_denoise=False), begun)


@torch.inference_mode()
def test_at_either_end_it_is_one_of_both(world):
    whole, clip = world.applied()
    assert torch.equal(world.sample(*world.applied(start_percent=0.0)), world.sample(whole, clip))
    # At 1 the text encoders' part is left, which acts all the time.
    assert torch.equal(world.sample(*world.applied(start_percent=1.0)), world.sample(world.sockets.model, clip))


@torch.inference_mode()
def test_two_concepts_each_begin_on_their_own(world):
    """Applied one after the other: of two halves of a LoRA, one begins and the other never does."""
    from contextual_inversion.nodes.concepts import ApplyConcept

    layers = sorted({key.split(".")[0] for key in world.lora if key.startswith("lora_unet_")})
    model, clip = world.sockets.model, world.sockets.clip
    halves = []
    for chosen, at in ((layers[::2], 0.3), (layers[1::2], 1.0)):
        part = {key: value for key, value in world.lora.items() if key.split(".")[0] in chosen}
        halves.append(Concept("thing", "dog", world.concept.vectors, lora=part))
        model, clip = ApplyConcept.execute(model, clip, halves[-1], 1.0, 1.0, "", start_percent=at).args
    found = world.sample(model, clip)
    near(found, world.sample(*world.applied(halves[0], start_percent=0.3)))
    apart(found, world.sample(world.sockets.model, clip))


def test_a_lora_of_another_model_is_refused_before_anything_changes(world):
    key = next(key for key in world.lora if key.startswith("lora_unet_") and key.endswith("lora_down.weight"))
    other = {**world.lora, key: world.lora[key][:, :1]}
    with pytest.raises(ValueError, match="of another model"):
        world.applied(Concept("thing", "dog", world.concept.vectors, lora=other), start_percent=0.3)
    stranger = {f"lora_unet_nowhere.{end}": torch.zeros(2, 2) for end in ("lora_up.weight", "lora_down.weight")}
    with pytest.raises(ValueError, match="nowhere"):
        world.applied(Concept("thing", "dog", world.concept.vectors, lora=stranger), start_percent=0.3)
    stem = key.removesuffix(".lora_down.weight")
    dora = {**world.lora, f"{stem}.dora_scale": torch.ones(1)}
    with pytest.raises(ValueError, match=r"'thing': .*dora_scale.* With start_percent 0 it is applied as any other"):
        world.applied(Concept("thing", "dog", world.concept.vectors, lora=dora), start_percent=0.3)
