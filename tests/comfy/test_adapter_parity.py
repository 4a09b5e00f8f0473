"""The two adapters agree: same weights and inputs, same numbers and gradients; and what came in stays as it was.

Parametrized over the bundled tiny model and over SD 1, SD 2 (v-prediction) and SDXL in shape, with random weights.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import same_latents_and_images
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from contextual_inversion.core.maths.context import attention_loss, embedding_loss
from contextual_inversion.core.maths.objective import weighted_sum
from contextual_inversion.core.maths.schedule import diffusion_loss, prediction_target
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import ImageSize, TextEncoder, TextToImageModel, TokenMeans
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.prompts.tokens import tokenize_prompt

KINDS = ("tiny", "sd1", "sd2", "sdxl")
TOLERANCE = 1e-4
"""What the two adapters may differ by, relative to the largest number of what is compared."""
SIZE = ImageSize(64, 72, 3, 5, 60, 70)
PROMPT, WORDS = "a photo of a {} in the snow", "teddy bear"


class Pair:
    """One set of weights in both programs."""

    def __init__(self, diffusers: DiffusersModel, sockets: Any) -> None:
        from contextual_inversion.nodes.comfy.model import ComfyModel

        self.diffusers = diffusers
        self.sockets = sockets
        self.comfy = ComfyModel(sockets.model, sockets.clip, sockets.vae)
        self.both = (self.diffusers, self.comfy)


def tiny_pair() -> tuple[DiffusersModel, Any]:
    from random_models import Sockets

    from contextual_inversion.core.models.tiny import load_tiny
    from contextual_inversion.nodes.comfy import demo_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parity holds for random weights too, while some are still missing
        diffusers = DiffusersModel.from_tiny(load_tiny())
        with torch.inference_mode():
            sockets = Sockets(demo_model.load_model_patcher(), demo_model.load_clip(), demo_model.load_vae())
    return diffusers, sockets


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, comfyui: Any) -> Iterator[Pair]:
    here = str(Path(__file__).parent)
    sys.path.append(here)  # pytest's importlib mode leaves a test's own folder out of the path
    try:
        import random_models

        yield Pair(*(tiny_pair() if request.param == "tiny" else random_models.build(request.param)))
    finally:
        sys.path.remove(here)


def agree(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Equal to `TOLERANCE` of the largest number."""
    equal_but_for_rounding(ours, theirs, TOLERANCE, what)


def noisy(model: TextToImageModel, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    # 16 x 16, so that SD's deepest level is 2 x 2: on one pixel a group norm sees two numbers and is a step function,
    # whose gradient says nothing.
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, model.latent_channels, 16, 16, generator=generator), torch.tensor([17, 903])


def new_vectors(model: TextToImageModel, count: int = 2) -> dict[str, torch.Tensor]:
    """Vectors of the size of real words, the same for both adapters."""
    generator = torch.Generator().manual_seed(2)
    vectors = {}
    for name, encoder in model.text_encoders.items():
        table = encoder.table()
        vectors[name] = (torch.randn(count, encoder.width, generator=generator) * table.std().float()).requires_grad_()
    return vectors


def losses(model: TextToImageModel, vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The diffusion loss and CoRe's (METHODS.md C1-C4) as a trainer would put them together."""
    clean, timesteps = noisy(model, 3)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    power = model.schedule.alpha_bar[timesteps].float()
    latents = power.sqrt().view(-1, 1, 1, 1) * clean + (1 - power).sqrt().view(-1, 1, 1, 1) * noise
    target = prediction_target(model.schedule.prediction_type, clean, noise, power)  # type: ignore[arg-type]

    def mean_attention(encodings: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        means = TokenMeans()
        wide = {name: encoding.expand(2) for name, encoding in encodings.items()}
        output = model.predict(latents, timesteps, model.conditioning(wide, SIZE), means)
        return output, means.layers

    concept, words = encode_prompts(model, [PROMPT], vectors=vectors), encode_prompts(model, [PROMPT], words=WORDS)
    name, encoder = next(iter(model.text_encoders.items()))
    rows = next(iter(vectors.values())).shape[0]
    ours = tokenize_prompt(encoder, PROMPT, rows=rows).context
    theirs = tokenize_prompt(encoder, PROMPT, words=WORDS).context
    output, attention = mean_attention(concept)
    with torch.no_grad():
        _, reference = mean_attention(words)
    terms = {
        "diffusion": diffusion_loss(output, target),
        "core/embedding": embedding_loss(concept[name].tokens, words[name].tokens, list(ours), list(theirs)),
        "core/attention": attention_loss(attention, reference, list(ours), list(theirs)),
    }
    total = weighted_sum(zip((1, 0.5, 5.0), terms.values(), strict=True))
    return terms | {"total": total}


def gradients(model: TextToImageModel, checkpointing: bool = False) -> dict[str, torch.Tensor]:
    """Losses, and every loss's gradient with respect to every encoder's vectors."""
    with model.session(gradient_checkpointing=checkpointing):
        vectors = new_vectors(model)
        found = losses(model, vectors)
        for name, loss in list(found.items()):
            grads = torch.autograd.grad(loss, list(vectors.values()), retain_graph=True, allow_unused=True)
            found |= {f"d {name} / d {encoder}": g for encoder, g in zip(vectors, grads, strict=True) if g is not None}
        return {name: value.detach() for name, value in found.items()}


# The two adapters


def test_same_description(pair: Pair) -> None:
    ours, theirs = pair.both
    assert isinstance(theirs, TextToImageModel)
    assert all(isinstance(encoder, TextEncoder) for encoder in theirs.text_encoders.values())
    assert list(ours.text_encoders) == list(theirs.text_encoders)
    for name, encoder in ours.text_encoders.items():
        other = theirs.text_encoders[name]
        for fact in ("name", "width", "max_length", "bos", "eos", "pad", "fingerprint", "output"):
            assert getattr(encoder, fact) == getattr(other, fact), fact
        # Without "!": it is SD 2's padding token to transformers, which therefore keeps it apart from words.
        assert encoder.tokenize("A dog, a CAT's hat.") == other.tokenize("A dog, a CAT's hat.")
        assert encoder.token_text(320) == other.token_text(320) == "a</w>"
    assert ours.fingerprint == theirs.fingerprint
    assert ours.schedule.prediction_type == theirs.schedule.prediction_type
    assert (ours.latent_channels, ours.latent_factor) == (theirs.latent_channels, theirs.latent_factor)
    agree(theirs.schedule.alpha_bar, ours.schedule.alpha_bar, "alpha_bar")


def test_same_layers(pair: Pair) -> None:
    ours, theirs = pair.both
    assert list(ours.cross_attention_layers()) == list(theirs.cross_attention_layers())
    mine, other = ours.linear_layers(), theirs.linear_layers()
    assert set(mine) == set(other)
    assert all(mine[name].weight.shape == other[name].weight.shape for name in mine)


def test_same_encodings(pair: Pair) -> None:
    for options in ({"words": "dog"}, {"vectors": {n: v.detach() for n, v in new_vectors(pair.diffusers).items()}}):
        ours, theirs = (encode_prompts(model, [PROMPT, "{}"], **options) for model in pair.both)
        for name in ours:
            agree(theirs[name].tokens, ours[name].tokens, f"tokens of {name}")
            assert (ours[name].pooled is None) == (theirs[name].pooled is None)
            if ours[name].pooled is not None:
                agree(theirs[name].pooled, ours[name].pooled, f"pooled of {name}")


def test_same_prediction_and_attention(pair: Pair) -> None:
    found = []
    for model in pair.both:
        with torch.no_grad():
            conditioning = model.conditioning(encode_prompts(model, [PROMPT, "{}"], words="dog"), SIZE)
            means = TokenMeans()
            plain, watched = (model.predict(*noisy(model), conditioning, probe) for probe in (None, means))
        equal_but_for_rounding(watched, plain)
        found.append((plain, means.layers))
    (ours, our_layers), (theirs, their_layers) = found
    agree(theirs, ours, "prediction")
    for index, (one, two) in enumerate(zip(our_layers, their_layers, strict=True)):
        agree(two, one, f"token means of layer {index}")


def test_same_features(pair: Pair) -> None:
    """What the UNet's encoder half sees, every map of it."""
    found = []
    for model in pair.both:
        with torch.no_grad():
            conditioning = model.conditioning(encode_prompts(model, ["", ""]), SIZE)
        found.append(model.features(*noisy(model), conditioning))
    ours, theirs = found
    for index, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        assert not one.requires_grad
        agree(two, one, f"map {index}")


def test_same_latents_and_images(pair: Pair) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    same_latents_and_images(pair.both, images, TOLERANCE)
    drawn = [model.to_latents(images, torch.Generator().manual_seed(6)) for model in pair.both]
    agree(drawn[1], drawn[0], "drawn latents")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_losses_and_gradients(pair: Pair, checkpointing: bool) -> None:
    with torch.inference_mode():  # as ComfyUI runs every node
        ours, theirs = (gradients(model, checkpointing) for model in pair.both)
    assert set(ours) == set(theirs)
    assert sum(name.startswith("d total") for name in ours) == len(pair.comfy.text_encoders)
    for name in ours:
        agree(theirs[name], ours[name], name)


# ComfyUI's side by itself


@torch.inference_mode()
def test_stock_conditioning_holds_what_each_layer_attends_to(pair: Pair) -> None:
    """XTI in stock nodes, with one text encoder or two: beside the ordinary context, that of every layer, in order."""
    from contextual_inversion.core.concept import Concept
    from contextual_inversion.nodes.comfy.concept_tokenizer import with_concept
    from contextual_inversion.nodes.comfy.layer_contexts import LAYERS, writing_layers

    layers = layer_vectors(pair.comfy)
    concept = Concept("keep", "dog", {name: value.mean(0) for name, value in layers.items()}, layers)
    clip = writing_layers(with_concept(pair.sockets.clip, concept), concept)
    encodings = encode_prompts(pair.comfy, [PROMPT], vectors=concept.vectors, layers=layers)
    expected = pair.comfy.conditioning(encodings, SIZE)
    ((context, extras),) = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT.format("<keep>")))
    found = extras["model_conds"][LAYERS].cond
    equal_but_for_rounding(context, expected.context)
    equal_but_for_rounding(found[0], expected.layers[:, 0])
    # Longer than one section, and weighted: each layer's part is what the prompt with its vectors alone is encoded to.
    text = "(red:1.3) " + "very " * 80 + "<keep>"
    ((_, extras),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    for index in (0, len(found[0]) - 1):
        own = Concept("keep", "dog", {name: value[index] for name, value in layers.items()})
        plain = with_concept(pair.sockets.clip, own)
        ((alone, _),) = plain.encode_from_tokens_scheduled(plain.tokenize(text))
        equal_but_for_rounding(extras["model_conds"][LAYERS].cond[:, index], alone)


def test_encode_is_the_stock_encoder_bit_for_bit(pair: Pair) -> None:
    for layer in (None, -2):
        clip = pair.sockets.clip.clone()
        if layer is not None:
            clip.clip_layer(layer)
        model = type(pair.comfy)(pair.sockets.model, clip, pair.sockets.vae)
        with torch.inference_mode():
            for text in ("a photo of a dog in the snow", ""):
                stock, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
                encodings = encode_prompts(model, [text])
                assert torch.equal(torch.cat([e.tokens for e in encodings.values()], dim=-1), stock)
                if encodings.get("clip_g") is not None:
                    assert torch.equal(encodings["clip_g"].pooled, pooled)
            with model.session():
                again = encode_prompts(model, [""])
            assert torch.equal(torch.cat([e.tokens for e in again.values()], dim=-1), stock)


def test_vectors_do_what_an_embedding_file_does(pair: Pair) -> None:
    clip = pair.sockets.clip
    vectors = {name: value.detach() for name, value in new_vectors(pair.comfy).items()}
    before, after = PROMPT.split("{}")
    tokens = {}
    for name, encoder in pair.comfy.text_encoders.items():
        start, end = encoder.tokenize(before), encoder.tokenize(after)
        row = [encoder.bos, *start, *vectors[name], *end, encoder.eos]
        tokens[name.removeprefix("clip_")] = [[(t, 1.0) for t in row + [encoder.pad] * (77 - len(row))]]
    stock = clip.encode_from_tokens(tokens)
    ours = encode_prompts(pair.comfy, [PROMPT], vectors=vectors)
    assert torch.equal(torch.cat([encoding.tokens for encoding in ours.values()], dim=-1), stock)


def layer_vectors(model: TextToImageModel) -> dict[str, torch.Tensor]:
    """(layers, 2, d) of every encoder, the same for both adapters."""
    generator = torch.Generator().manual_seed(5)
    layers = len(model.cross_attention_layers())
    return {
        name: (torch.randn(layers, 2, encoder.width, generator=generator) * encoder.table().std().float())
        for name, encoder in model.text_encoders.items()
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_vector_for_every_layer(pair: Pair, checkpointing: bool) -> None:
    """XTI: prediction, attention and every layer's gradient agree, also where blocks are computed twice."""
    found = []
    for model in pair.both:
        with torch.inference_mode(), model.session(gradient_checkpointing=checkpointing):
            layers = {name: value.requires_grad_() for name, value in layer_vectors(model).items()}
            means = {name: value.mean(0) for name, value in layers.items()}
            given = model.conditioning(encode_prompts(model, [PROMPT], vectors=means, layers=layers), SIZE)
            probe = TokenMeans()
            output = model.predict(*noisy(model), given.expand(2), probe)
            total = output.square().mean() + sum(layer.square().sum() for layer in probe.layers)
            gradients = torch.autograd.grad(total, list(layers.values()))
            found.append([output, *probe.layers, *gradients])
    for number, (ours, theirs) in enumerate(zip(*found, strict=True)):
        agree(ours, theirs, f"part {number}")


def test_equal_vectors_for_all_layers_change_nothing(pair: Pair) -> None:
    for model in pair.both:
        vectors = {name: value.detach() for name, value in new_vectors(model).items()}
        count = len(model.cross_attention_layers())
        layers = {name: value.expand(count, -1, -1) for name, value in vectors.items()}
        with torch.no_grad():
            plain = model.conditioning(encode_prompts(model, [PROMPT], vectors=vectors), SIZE)
            own = model.conditioning(encode_prompts(model, [PROMPT], vectors=vectors, layers=layers), SIZE)
            expected = model.predict(*noisy(model), plain.expand(2))
            equal_but_for_rounding(model.predict(*noisy(model), own.expand(2)), expected)
        with pytest.raises(ValueError, match="cross-attention layers"):
            model.predict(*noisy(model), replace(own, layers=own.layers[1:]).expand(2))


def test_predict_is_what_the_sampler_would_denoise_with(pair: Pair) -> None:
    model, base = pair.comfy, pair.sockets.model.model
    latents, timesteps = noisy(model)
    sigma = base.model_sampling.sigma(timesteps)
    scale = (sigma**2 + 1).sqrt().view(-1, 1, 1, 1)
    with torch.no_grad():
        given = model.conditioning(encode_prompts(model, [PROMPT, "{}"], words="dog"), SIZE)
        raw = model.predict(latents, timesteps, given)
        y = {} if given.y is None else {"y": given.y}
        denoised = base.apply_model(latents * scale, sigma, c_crossattn=given.context, transformer_options={}, **y)
    agree(base.model_sampling.calculate_denoised(sigma, raw, latents * scale), denoised, "denoised")


def test_gradient_equals_a_finite_difference(pair: Pair) -> None:
    with torch.inference_mode(), pair.comfy.session():
        vectors = new_vectors(pair.comfy)
        found = torch.autograd.grad(losses(pair.comfy, vectors)["total"], list(vectors.values()))
        for name, gradient in zip(vectors, found, strict=True):
            length = 0.05 * vectors[name].norm().item()
            step = length * gradient / gradient.norm()
            ends = [
                losses(pair.comfy, vectors | {name: vectors[name].detach() + sign * step})["total"].item()
                for sign in (1, -1)
            ]
            assert (ends[0] - ends[1]) / (2 * length) == pytest.approx(gradient.norm().item(), rel=3e-2)


def test_attention_rows_sum_to_one(pair: Pair) -> None:
    seen: list[int] = []

    def probe(layer: int, probabilities: torch.Tensor) -> None:
        assert probabilities.shape[-1] == 77
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
        seen.append(layer)

    with torch.no_grad():
        given = pair.comfy.conditioning(encode_prompts(pair.comfy, ["a dog", ""]), SIZE)
        pair.comfy.predict(*noisy(pair.comfy), given, probe)
    assert seen == list(range(len(pair.comfy.cross_attention_layers())))


def low_rank_patches(patcher: Any, keys: list[str]) -> dict[str, Any]:
    """A LoRA on these weights, as LoraLoader would add it."""
    from comfy.weight_adapter import LoRAAdapter

    generator = torch.Generator().manual_seed(7)
    weights = patcher.model_state_dict()
    patches = {}
    for key in keys:
        out, width = weights[key].shape[:2]
        up, down = torch.randn(out, 2, generator=generator), torch.randn(2, width, generator=generator)
        patches[key] = LoRAAdapter(set(), (0.4 * up, 0.4 * down, 2.0, None, None, None))
    return patches


LoRA = tuple[Any, str, torch.nn.Parameter]
"""The patcher that has it, the key it is on, and the same weight in diffusers."""


def with_lora(pair: Pair, part: str) -> tuple[Any, Any, LoRA]:
    """MODEL and CLIP with a LoRA on one weight of one of them, as large as the weight itself."""
    model, clip = pair.sockets.model.clone(), pair.sockets.clip.clone()
    if part == "unet":
        patcher, key = model, f"diffusion_model.{_comfy_name(pair)}.to_k.weight"
        twin = pair.diffusers.linear_layers()[f"{pair.comfy.cross_attention_layers()[0]}.to_k"].weight
    else:
        name, encoder = next(iter(pair.diffusers.text_encoders.items()))
        patcher, key = clip.patcher, f"{name}.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
        twin = encoder._transformer.encoder.layers[0].mlp.fc1.weight
    assert patcher.add_patches(low_rank_patches(patcher, [key]))
    return model, clip, (patcher, key, twin)


def _comfy_name(pair: Pair) -> str:
    wanted = pair.comfy._layers[0].module
    return next(n for n, part in pair.sockets.model.model.diffusion_model.named_modules() if part is wanted)


@pytest.mark.parametrize(("part", "term"), [("unet", "core/attention"), ("clip", "core/embedding")])
def test_lora_is_honoured_and_left_alone(pair: Pair, part: str, term: str) -> None:
    import comfy.model_management

    plain = gradients(pair.comfy)
    comfy.model_management.unload_all_models()
    before = state_of(pair.sockets)
    with torch.inference_mode():
        model, clip, lora = with_lora(pair, part)
        adapter = type(pair.comfy)(model, clip, pair.sockets.vae)
        ours = gradients(adapter)
    assert adapter.fingerprint == pair.comfy.fingerprint
    for name, value in merged_into_diffusers(pair, lora).items():
        agree(ours[name], value, f"{name} with LoRA on {part}")
    # It does something, and by far more than the tolerance would hide.
    assert (ours[term] - plain[term]).abs() > 100 * TOLERANCE * plain[term].abs()
    assert state_of(pair.sockets) == before
    again = gradients(pair.comfy)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def merged_into_diffusers(pair: Pair, lora: LoRA) -> dict[str, torch.Tensor]:
    """The same losses with W + alpha / r up down written into the diffusers weight for the time being."""
    patcher, key, weight = lora
    up, down, alpha = patcher.patches[key][0][1].weights[:3]
    original = weight.detach().clone()
    try:
        with torch.no_grad():
            weight += alpha / down.shape[0] * (up @ down)
        return gradients(pair.diffusers)
    finally:
        with torch.no_grad():
            weight.copy_(original)


def test_attention_patches_of_others(pair: Pair) -> None:
    """A patch on attn2's inputs stays in force beside the probe; a replacement of attn2 is refused by name."""
    layer = pair.comfy._layers[0]
    calls: list[int] = []

    def silence(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, _: Any) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return n, context, value * 0

    model = pair.sockets.model.clone()
    model.set_model_attn2_patch(silence)
    adapter = type(pair.comfy)(model, pair.sockets.clip, pair.sockets.vae)
    with torch.no_grad():
        given = adapter.conditioning(encode_prompts(adapter, ["a dog", ""]), SIZE)
        plain, watched = (adapter.predict(*noisy(adapter), given, probe) for probe in (None, TokenMeans()))
        unpatched = pair.comfy.predict(*noisy(pair.comfy), given)
    assert len(calls) == 2 * len(adapter.cross_attention_layers())
    equal_but_for_rounding(watched, plain)
    assert not torch.allclose(plain, unpatched, atol=1e-4)

    for key in (layer.key, layer.key[:2]):
        model = pair.sockets.model.clone()
        model.set_model_attn2_replace(lambda q, k, v, _: q, *key)
        adapter = type(pair.comfy)(model, pair.sockets.clip, pair.sockets.vae)
        with torch.no_grad():
            adapter.predict(*noisy(adapter), given)
            with pytest.raises(RuntimeError, match="another node replaces the cross-attention"):
                adapter.predict(*noisy(adapter), given, TokenMeans())


# What came in is as it was


def state_of(sockets: Any) -> list[Any]:
    """Everything of MODEL, CLIP and VAE that could be left changed: values, storage, flags, patches, hooks, loading."""
    import comfy.model_management

    states: list[Any] = []
    for patcher in (sockets.model, sockets.clip.patcher):
        module = patcher.model
        tensors = [*module.named_parameters(), *module.named_buffers()]
        states.append([(name, value.data_ptr(), value.device, value.requires_grad) for name, value in tensors])
        states.append([(digest(value), value.is_inference()) for _, value in tensors])
        states.append([(part.training, "forward" in vars(part), len(part._forward_hooks)) for part in module.modules()])
        states.append(
            [list(patcher.patches), dict(patcher.object_patches), dict(patcher.injections), len(patcher.backup)]
        )
        states.append(repr(patcher.model_options))
        states.append([entry.model is patcher for entry in comfy.model_management.current_loaded_models].count(True))
    clip = sockets.clip
    states.append([clip.layer_idx, [digest(value) for value in sockets.vae.first_stage_model.state_dict().values()]])
    states.append(type(getattr(sockets.vae.first_stage_model, "regularization", None)))
    return states


def digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()


def train_a_little(model: TextToImageModel, checkpointing: bool, then: Callable[[], None]) -> None:
    with torch.inference_mode(), model.session(gradient_checkpointing=checkpointing):
        vectors = new_vectors(model)
        images = torch.zeros(1, 3, 64, 64)
        latents = model.to_latents(images, torch.Generator().manual_seed(1))
        for _ in range(2):
            loss = losses(model, vectors)["total"]
            for vector, gradient in zip(
                vectors.values(), torch.autograd.grad(loss, list(vectors.values())), strict=True
            ):
                vector.data -= 0.1 * gradient
        model.to_images(latents)
        losses(model, vectors)["total"].backward()
        then()


@pytest.mark.parametrize("loaded_before", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_changed_after_training(pair: Pair, loaded_before: bool, checkpointing: bool) -> None:
    import comfy.model_management as management

    management.unload_all_models()
    if loaded_before:
        with torch.inference_mode():
            management.load_models_gpu([pair.sockets.model, pair.sockets.clip.patcher])
    before = state_of(pair.sockets)
    train_a_little(pair.comfy, checkpointing, lambda: None)
    assert state_of(pair.sockets) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_changed_after_an_error(pair: Pair, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error("stopped")

    before = state_of(pair.sockets)
    with pytest.raises(error, match="stopped"):
        train_a_little(pair.comfy, True, fail)
    assert state_of(pair.sockets) == before
    assert not torch.is_inference_mode_enabled()
    train_a_little(pair.comfy, False, lambda: None)


def test_one_session_at_a_time(pair: Pair) -> None:
    before = state_of(pair.sockets)

    def twice() -> None:
        with pair.comfy.session():
            pass

    with pytest.raises(RuntimeError, match="already"):
        train_a_little(pair.comfy, False, twice)
    assert state_of(pair.sockets) == before


def test_other_models_are_refused(pair: Pair) -> None:
    import comfy.model_sampling

    from contextual_inversion.nodes.comfy.model import noise_schedule

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model = pair.sockets.model.clone()
    model.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match="not that of Stable Diffusion"):
        type(pair.comfy)(model, pair.sockets.clip, pair.sockets.vae)

    class Velocity(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    terminal = noise_schedule(Velocity(zsnr=True))
    assert terminal.prediction_type == "v_prediction"
    assert terminal.alpha_bar[-1] < 1e-6
