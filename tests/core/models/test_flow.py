"""The tiny flow matching model behind the protocol."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")

from contextual_inversion.core.maths.context import attention_loss, embedding_loss
from contextual_inversion.core.models.diffusers_flow import FlowModel
from contextual_inversion.core.models.protocol import ImageSize, TextToImageModel, TokenMeans
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import config
from contextual_inversion.core.models.tiny.contextualizer import load_contextualizer
from contextual_inversion.core.models.tiny.flow import patches, places, shifted, unpatched
from contextual_inversion.core.models.tiny.load import load_flow
from contextual_inversion.core.prompts.tokens import tokenize_prompt

SIZE = ImageSize(config.IMAGE_SIZE, config.IMAGE_SIZE)
CHANNELS = config.LATENT_CHANNELS


@pytest.fixture(scope="module")
def model() -> FlowModel:
    return FlowModel(load_flow())


def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([1700, 9030])


def test_tokens_are_squares_of_latents_row_by_row():
    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = patches(latents)
    assert tokens.shape == (2, 6, 12)
    # The fourth token is the first of the second row; channels first, then rows, then columns.
    assert torch.equal(tokens[1, 3], latents[1, :, 2:4, 0:2].reshape(-1))
    assert torch.equal(unpatched(tokens, 4, 6), latents)
    assert places(4, 6).tolist() == [[0, row, column] for row in range(2) for column in range(3)]


def test_sigmas_are_shifted_towards_noise():
    u = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    expected = math.exp(1.15) / (math.exp(1.15) + 1 / u - 1)
    equal_but_for_rounding(shifted(u), expected, 1e-12)


def test_a_pass_is_that_of_the_network_at_its_noise_level(model: FlowModel):
    """z_t = sqrt(alpha-bar) z_0 + sqrt(1 - alpha-bar) noise goes in, (1 - sigma) z_0 + sigma noise is looked at."""
    clean, noise = torch.randn(2, 2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(2))
    at = torch.tensor([1700, 9030])
    sigma = shifted((at.double() + 1) / config.FLOW_STEPS).float()[:, None, None, None]
    power = model.schedule.alpha_bar[at].float()[:, None, None, None]
    encoding = encode_prompts(model, ["a red cat", ""])["clip_l"]
    read = encoding.tokens[:, : config.FLOW_TOKENS]
    with torch.no_grad():
        ours = model.predict(
            power.sqrt() * clean + (1 - power).sqrt() * noise, at, model.conditioning({"clip_l": encoding}, SIZE)
        )
        theirs = model.unet(
            patches((1 - sigma) * clean + sigma * noise),
            read,
            encoding.pooled,
            sigma.flatten(),
            img_ids=places(16, 16),
            txt_ids=torch.zeros(config.FLOW_TOKENS, 3),
        ).sample
    equal_but_for_rounding(ours, unpatched(theirs, 16, 16))


def test_image_tokens_look_at_text_and_image(model: FlowModel):
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        conditioning = model.conditioning(encode_prompts(model, ["a red cat", ""]), SIZE)
        plain = model.predict(*noisy(), conditioning)
        watched = model.predict(*noisy(), conditioning, lambda layer, shares: seen.append(shares))
    equal_but_for_rounding(watched, plain)
    assert len(seen) == len(model.cross_attention_layers()) == 7
    heads = config.TRANSFORMER["num_attention_heads"]
    assert all(shares.shape == (2, heads, 64, config.FLOW_TOKENS) for shares in seen)
    total = torch.stack([shares.sum(-1) for shares in seen])
    assert bool(((total > 0) & (total < 1)).all())


@pytest.mark.parametrize("template", ["a {} in the snow", "a red {} on lava"])
def test_core_is_exactly_nothing_for_the_class_word(model: FlowModel, template: str):
    encoder = model.text_encoders["clip_l"]
    (token,) = encoder.tokenize("cat")
    encodings = [
        encode_prompts(model, [template], words="cat"),
        encode_prompts(model, [template], vectors={"clip_l": encoder.table()[[token]]}),
    ]
    means = [TokenMeans(), TokenMeans()]
    with torch.no_grad():
        for encoding, one in zip(encodings, means, strict=True):
            model.predict(*noisy(), model.conditioning(encoding, SIZE).expand(2), one)
    context = list(tokenize_prompt(encoder, template, rows=1).context)
    tokens = [encoding["clip_l"].tokens for encoding in encodings]
    assert float(embedding_loss(*tokens, context, context)) == 0
    assert float(attention_loss(means[0].layers, means[1].layers, context, context)) == 0


def test_a_contextualizer_for_the_same_table_fits(model: FlowModel):
    contextualizer = load_contextualizer()
    contextualizer.encoder.require(model.text_encoders["clip_l"])


def test_a_prompt_is_drawn(model: FlowModel):
    conditioning = [model.conditioning(encode_prompts(model, [text]), SIZE) for text in ("a red cat", "")]
    latents = sample(model, *conditioning, shape=(1, CHANNELS, 16, 16), steps=2, seed=0)
    assert bool(torch.isfinite(latents).all())
    assert model.to_images(latents).shape == (1, 3, 128, 128)


class Observer:
    """Looks on."""

    def observe(self, *_: object) -> None: ...


def observed(model: FlowModel) -> None:
    model.predict(*noisy(), model.conditioning(encode_prompts(model, ["", ""]), SIZE), Observer())


def layered(model: FlowModel) -> None:
    vectors = {"vectors": {"clip_l": torch.zeros(1, 128)}, "layers": {"clip_l": torch.zeros(7, 1, 128)}}
    model.conditioning(encode_prompts(model, ["{}"], **vectors), SIZE)


def checkpointed(model: FlowModel) -> None:
    with model.session(gradient_checkpointing=True):
        pass


def longer(model: FlowModel) -> None:
    encode_prompts(model, ["a very " * 20 + "red cat"])


@pytest.mark.parametrize(
    "what",
    [observed, longer, layered, checkpointed, FlowModel.features, FlowModel.flexible_attention],
    ids=lambda one: one.__name__,
)
def test_what_it_cannot_do_is_said(model: FlowModel, what: Callable[[FlowModel], object]):
    with pytest.raises(ValueError, match=r"tiny flow|joint attention"):
        what(model)


def test_it_is_a_model_of_the_protocol(model: FlowModel):
    assert isinstance(model, TextToImageModel)
