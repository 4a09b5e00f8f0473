"""The diffusers adapter computes what diffusers' own pipelines compute, shows its attention, and leaves no trace."""

from typing import Any

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from small_pipelines import KINDS, POOLED, WIDTH, pipeline

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import (
    Conditioning,
    Encoding,
    ImageSize,
    TextEncoder,
    TextToImageModel,
    TokenMeans,
)
from contextual_inversion.core.models.text import encode_prompts

PROMPTS = ["a photo of a dog in the snow", ""]
SIZE = ImageSize(64, 72, 3, 5, 60, 70)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(kind: str) -> Any:
    return pipeline(kind)


@pytest.fixture(scope="module")
def model(pipe: Any) -> DiffusersModel:
    return DiffusersModel.from_pipeline(pipe)


def conditioning(model: DiffusersModel, prompts: list[str] = PROMPTS) -> Conditioning:
    return model.conditioning(encode_prompts(model, prompts), SIZE)


def noisy(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 8, 8, generator=generator), torch.tensor([17, 903, 500, 0][:batch])


def fixed_state(model: DiffusersModel) -> list[Any]:
    """Everything of a model's modules that a session could leave behind."""
    modules = [model.unet, model.vae, *(encoder.module for encoder in model.text_encoders.values())]
    parts = [part for module in modules for part in module.modules()]
    flags = [(part.training, getattr(part, "gradient_checkpointing", None)) for part in parts]
    functions = [id(vars(part).get("_gradient_checkpointing_func")) for part in parts]
    processors = [id(part.processor) for part in parts if hasattr(part, "processor")]
    weights = [(value.data_ptr(), value.requires_grad, value._version) for m in modules for value in m.parameters()]
    return [flags, functions, processors, weights]


def test_satisfies_the_protocol(model: DiffusersModel, kind: str) -> None:
    assert isinstance(model, TextToImageModel)
    assert all(isinstance(encoder, TextEncoder) for encoder in model.text_encoders.values())
    names = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[kind]
    assert list(model.text_encoders) == names
    assert model.schedule.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    assert (model.latent_channels, model.latent_factor, model.schedule.steps) == (4, 8, 1000)


def test_encode_equals_the_stock_pipeline(model: DiffusersModel, pipe: Any, kind: str) -> None:
    with torch.no_grad():
        encodings = encode_prompts(model, PROMPTS)
        stock, *rest = pipe.encode_prompt(
            PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    joined = torch.cat([encoding.tokens for encoding in encodings.values()], dim=-1)
    assert torch.equal(joined, stock)
    if kind == "sdxl":
        assert torch.equal(encodings["clip_g"].pooled, rest[1])
    else:
        assert all(encoding.pooled is None for encoding in encodings.values())


def test_tokens_and_their_texts(model: DiffusersModel) -> None:
    for encoder in model.text_encoders.values():
        ids = encoder.tokenize("a dog")
        assert [encoder.token_text(token) for token in ids] == ["a</w>", "dog</w>"]
        assert encoder.table().shape == (49408, encoder.width)
        assert (encoder.bos, encoder.eos, encoder.max_length) == (49406, 49407, 77)
    pads = [encoder.pad for encoder in model.text_encoders.values()]
    assert pads == {"clip_l": [49407], "clip_h": [0], "clip_lclip_g": [49407, 0]}["".join(model.text_encoders)]


def test_predict_equals_the_stock_unet(model: DiffusersModel, pipe: Any, kind: str) -> None:
    latents, timesteps = noisy()
    given = conditioning(model)
    added = None
    if kind == "sdxl":
        ids = pipe._get_add_time_ids((64, 72), (3, 5), (60, 70), torch.float32, text_encoder_projection_dim=POOLED)
        added = {"text_embeds": given.y[:, :POOLED], "time_ids": ids.repeat(2, 1)}
    with torch.no_grad():
        stock = pipe.unet(latents, timesteps, given.context, added_cond_kwargs=added).sample
        assert torch.equal(model.predict(latents, timesteps, given), stock)


def test_size_conditioning_reaches_sdxl_alone(model: DiffusersModel, kind: str) -> None:
    encodings = encode_prompts(model, ["a dog"])
    latents, timesteps = noisy(1)
    with torch.no_grad():
        one, two = (
            model.predict(latents, timesteps, model.conditioning(encodings, size))
            for size in (ImageSize(64, 64), ImageSize(1024, 640))
        )
    assert torch.equal(one, two) == (kind != "sdxl")


def test_probe_sees_every_layer_and_changes_nothing(model: DiffusersModel) -> None:
    latents, timesteps = noisy()
    maps: list[torch.Tensor] = []
    means = TokenMeans()

    def probe(layer: int, probabilities: torch.Tensor) -> None:
        assert layer == len(maps)
        maps.append(probabilities)
        means(layer, probabilities)

    before = fixed_state(model)
    with torch.no_grad():
        given = conditioning(model)
        plain, watched = model.predict(latents, timesteps, given), model.predict(latents, timesteps, given, probe)
    assert len(maps) == len(model.cross_attention_layers()) >= 4
    for probabilities, mean in zip(maps, means.layers, strict=True):
        assert (probabilities.shape[0], probabilities.shape[-1]) == (2, 77)
        assert probabilities.dtype == torch.float32
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
        torch.testing.assert_close(mean, probabilities.mean((1, 2)))
    equal_but_for_rounding(watched, plain)
    assert fixed_state(model) == before


def test_layers_are_named_in_forward_order(model: DiffusersModel) -> None:
    seen: list[str] = []
    names = model.cross_attention_layers()
    hooks = [
        dict(model.unet.named_modules())[name].register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in names
    ]
    with torch.no_grad():
        model.predict(*noisy(), conditioning(model))
    for hook in hooks:
        hook.remove()
    assert seen == list(names)


def test_probe_is_removed_after_an_error(model: DiffusersModel) -> None:
    def broken(layer: int, _: torch.Tensor) -> None:
        if layer == 1:
            raise KeyboardInterrupt

    before = fixed_state(model)
    with pytest.raises(KeyboardInterrupt):
        model.predict(*noisy(), conditioning(model), broken)
    assert fixed_state(model) == before


def test_probe_refuses_foreign_processors(model: DiffusersModel) -> None:
    class IPAdapterAttnProcessor:
        def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return hidden_states

    layer = dict(model.unet.named_modules())[model.cross_attention_layers()[0]]
    stock = layer.processor
    layer.set_processor(IPAdapterAttnProcessor())
    try:
        with pytest.raises(RuntimeError, match="IPAdapterAttnProcessor"):
            model.predict(*noisy(), conditioning(model), TokenMeans())
    finally:
        layer.set_processor(stock)


def loss_and_gradients(
    model: DiffusersModel, vectors: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    encodings = encode_prompts(model, ["a photo of a {} in the snow", "a {}"], vectors=vectors)
    means = TokenMeans()
    output = model.predict(*noisy(), model.conditioning(encodings, SIZE), means)
    attention = sum((layer[:, 5] ** 2).sum() for layer in means.layers)
    loss = output.square().mean() + attention
    return loss, list(torch.autograd.grad(loss, list(vectors.values())))


def new_vectors(model: DiffusersModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: (0.1 * torch.randn(2, encoder.width, generator=generator)).requires_grad_()
        for name, encoder in model.text_encoders.items()
    }


def test_gradient_equals_a_finite_difference(model: DiffusersModel) -> None:
    with model.session():
        vectors = new_vectors(model)
        _, gradients = loss_and_gradients(model, vectors)
        for name, gradient in zip(vectors, gradients, strict=True):
            step = 2e-2 * gradient / gradient.norm()
            ends = []
            for sign in (1, -1):
                moved = vectors | {name: (vectors[name] + sign * step).detach().requires_grad_()}
                ends.append(loss_and_gradients(model, moved)[0].item())
            slope = (ends[0] - ends[1]) / (2 * 2e-2)
            assert slope == pytest.approx(gradient.norm().item(), rel=2e-2)


def test_gradient_checkpointing_changes_no_bit(model: DiffusersModel) -> None:
    results = []
    for checkpointing in (False, True):
        with model.session(gradient_checkpointing=checkpointing):
            results.append(loss_and_gradients(model, new_vectors(model)))
    (plain, plain_gradients), (saved, saved_gradients) = results
    assert torch.equal(plain, saved)
    for one, two in zip(plain_gradients, saved_gradients, strict=True):
        assert one.abs().max() > 0
        assert torch.equal(one, two)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_session_restores_everything_also_after_an_error(model: DiffusersModel, checkpointing: bool) -> None:
    model.unet.train()
    model.unet.conv_in.eval()
    model.unet.conv_in.weight.requires_grad_(False)
    before = fixed_state(model)

    def interrupted() -> None:
        with torch.inference_mode(), model.session(gradient_checkpointing=checkpointing):
            assert not any(part.training for part in model.unet.modules())
            assert not any(value.requires_grad for value in model.unet.parameters())
            loss_and_gradients(model, new_vectors(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert fixed_state(model) == before
    model.unet.eval()


def test_latents_are_the_posterior_scaled(model: DiffusersModel, pipe: Any) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    posterior = pipe.vae.encode(images).latent_dist
    scale = pipe.vae.config.scaling_factor
    torch.testing.assert_close(model.to_latents(images), posterior.mean * scale)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(4))
    drawn = model.to_latents(images, torch.Generator().manual_seed(4))
    torch.testing.assert_close(drawn, (posterior.mean + posterior.std * noise) * scale)
    again = model.to_images(drawn)
    assert again.shape == images.shape
    assert again.abs().max() <= 1


def test_fingerprints_follow_the_weights(kind: str, model: DiffusersModel) -> None:
    twin = DiffusersModel.from_pipeline(pipeline(kind))
    assert twin.fingerprint == model.fingerprint
    name, encoder = next(iter(twin.text_encoders.items()))
    assert encoder.fingerprint == model.text_encoders[name].fingerprint
    other = DiffusersModel.from_pipeline(pipeline(kind))
    with torch.no_grad():
        other.text_encoders[name].table()[5] += 1
        other.unet.conv_in.weight[0] += 1
    assert other.fingerprint != model.fingerprint
    assert other.text_encoders[name].fingerprint != encoder.fingerprint


def test_folder_gives_the_same_model(kind: str, model: DiffusersModel, tmp_path: Any) -> None:
    pipeline(kind).save_pretrained(tmp_path)
    loaded = DiffusersModel.from_pipeline(tmp_path)
    assert loaded.fingerprint == model.fingerprint
    with torch.no_grad():
        one, two = (each.predict(*noisy(), conditioning(each)) for each in (model, loaded))
    assert torch.equal(one, two)


@pytest.mark.parametrize("plain", [(), ("vae",)], ids=["every part", "all but one part"])
def test_a_folder_of_variants_alone_is_opened(kind: str, model: DiffusersModel, tmp_path: Any, plain: tuple) -> None:
    """`diffusion_pytorch_model.fp16.safetensors` and nothing else, as many models are handed round."""
    pipeline(kind).save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        if file.parent.name not in plain:
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert DiffusersModel.from_pipeline(tmp_path).fingerprint == model.fingerprint


def test_a_folder_of_pickles_is_not_opened(kind: str, tmp_path: Any) -> None:
    pipeline(kind).save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"pickles .* are not opened"):
        DiffusersModel.from_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["m.safetensors"], None),
        (["m.fp16.safetensors"], "fp16"),
        (["m.fp16.safetensors", "m.safetensors"], None),
        (["m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors"], "fp16"),
        (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"], None),
        (["m.non_ema.safetensors", "m.bin"], "non_ema"),
    ],
)
def test_a_variant_is_chosen_where_there_is_no_plain_file(tmp_path: Any, names: list[str], variant: str | None) -> None:
    from contextual_inversion.core.models.pipeline_folder import chosen_variant, variants_in

    (tmp_path / "unet").mkdir()
    for name in names:
        (tmp_path / "unet" / name).touch()
    assert chosen_variant([variants_in(tmp_path / "unet")]) == variant


def test_clear_errors(pipe: Any, tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DiffusersModel.from_pipeline(tmp_path / "nowhere")
    encoder = next(iter(DiffusersModel.from_pipeline(pipe).text_encoders.values()))
    schedule = DiffusersModel.from_pipeline(pipe).schedule
    with pytest.raises(ValueError, match="numbers a token"):
        DiffusersModel(pipe.unet, pipe.vae, [encoder, encoder, encoder], schedule)


def test_half_precision_asks_the_autoencoder_to_be_exact() -> None:
    pipe = pipeline("sdxl")
    pipe.vae.register_to_config(force_upcast=True)
    exact = DiffusersModel.from_pipeline(pipe).to_latents(torch.zeros(1, 3, 64, 64))
    pipe.vae.half()
    halved = DiffusersModel.from_pipeline(pipe).to_latents(torch.zeros(1, 3, 64, 64))
    assert pipe.vae.dtype == torch.float16
    torch.testing.assert_close(halved, exact, rtol=2e-2, atol=2e-3)


def test_widths_of_the_two_encoders_join() -> None:
    model = DiffusersModel.from_pipeline(pipeline("sdxl"))
    encodings = {
        "clip_g": Encoding(torch.full((1, 77, POOLED), 2.0), torch.zeros(1, POOLED)),
        "clip_l": Encoding(torch.full((1, 77, WIDTH), 1.0)),
    }
    context = model.conditioning(encodings, SIZE).context
    assert torch.equal(context[0, 0], torch.cat([torch.full((WIDTH,), 1.0), torch.full((POOLED,), 2.0)]))
