"""DDIM with guidance: the textbook's laws, diffusers' sampler as the reference, and seeds that mean something."""

from types import SimpleNamespace

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from small_pipelines import pipeline

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import Conditioning, ImageSize, NoiseSchedule
from contextual_inversion.core.models.sampling import ddim_sigma, ddim_timesteps, guided, sample
from contextual_inversion.core.models.text import encode_prompts

SHAPE = (2, 4, 8, 8)


class Oracle:
    """A model that knows the clean latents: the best any network could be."""

    device = torch.device("cpu")

    def __init__(self, kind: str, clean: torch.Tensor) -> None:
        alpha_bar = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)
        self.schedule = NoiseSchedule(alpha_bar, kind)
        self.clean = clean

    def predict(
        self, latents: torch.Tensor, timesteps: torch.Tensor, _: Conditioning, probe: None = None
    ) -> torch.Tensor:
        clean = self.clean.repeat(latents.shape[0] // self.clean.shape[0], 1, 1, 1)
        power = self.schedule.alpha_bar[timesteps].float().view(-1, 1, 1, 1)
        noise = (latents - power.sqrt() * clean) / (1 - power).sqrt()
        velocity = power.sqrt() * noise - (1 - power).sqrt() * clean
        return {"epsilon": noise, "v_prediction": velocity, "sample": clean}[self.schedule.prediction_type]


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return DiffusersModel.from_pipeline(pipeline("sd2"))


def prompts(model: DiffusersModel) -> tuple[Conditioning, Conditioning]:
    size = ImageSize(64, 64)
    positive = model.conditioning(encode_prompts(model, ["a photo of a {}"], words="dog"), size)
    return positive, model.conditioning(encode_prompts(model, [""]), size)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_oracle_is_followed_to_its_picture(kind: str, eta: float) -> None:
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    nothing = Conditioning(torch.zeros(1, 77, 4))
    drawn = sample(Oracle(kind, clean), nothing, nothing, shape=SHAPE, steps=7, guidance=3.0, seed=0, eta=eta)  # type: ignore[arg-type]
    torch.testing.assert_close(drawn, clean, rtol=1e-3, atol=1e-3)


def test_equals_the_sampler_of_diffusers(model: DiffusersModel) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    # A divisor of 1000: otherwise diffusers' DDIM aims each step a timestep beside the one it visits next.
    scheduler.set_timesteps(5)
    positive, negative = prompts(model)
    both = Conditioning.cat([negative, positive])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    ours = sample(model, positive, negative, shape=latents.shape, steps=5, guidance=3.0, seed=9)
    with torch.no_grad():
        for tick in scheduler.timesteps:
            output = model.predict(torch.cat([latents, latents]), tick.expand(2), both)
            unconditional, conditional = output.chunk(2)
            prediction = unconditional + 3.0 * (conditional - unconditional)
            latents = scheduler.step(prediction, tick, latents).prev_sample
    torch.testing.assert_close(ours, latents, rtol=1e-3, atol=1e-3)


def test_seeds(model: DiffusersModel) -> None:
    positive, negative = prompts(model)

    def draw(count: int, seed: int | list[int]) -> torch.Tensor:
        return sample(model, positive, negative, shape=(count, 4, 8, 8), steps=3, seed=seed, eta=0.5)

    pair = draw(2, 7)
    assert torch.equal(pair, draw(2, [7, 8]))
    # A picture does not depend on its neighbours, up to the rounding of kernels that see another batch size.
    torch.testing.assert_close(pair[1:], draw(1, 8), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(pair[0], pair[1])
    with pytest.raises(ValueError, match="2 seeds"):
        draw(2, [1])


def test_callback_and_guidance_of_one(model: DiffusersModel) -> None:
    positive, negative = prompts(model)
    seen: list[tuple[int, int]] = []
    drawn = sample(
        model,
        positive,
        negative,
        shape=(1, 4, 8, 8),
        steps=4,
        guidance=1.0,
        seed=1,
        callback=lambda step, steps, z_0: seen.append((step, steps)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # Guidance 1 is the conditional model alone: the negative prompt has no say.
    alone = sample(model, positive, positive, shape=(1, 4, 8, 8), steps=4, guidance=1.0, seed=1)
    torch.testing.assert_close(drawn, alone, rtol=1e-3, atol=1e-3)


def test_timesteps() -> None:
    assert ddim_timesteps(1000, 4) == [999, 749, 499, 249]
    assert ddim_timesteps(1000, 1) == [999]
    assert ddim_timesteps(10, 10) == list(range(9, -1, -1))
    for steps in (0, 11):
        with pytest.raises(ValueError, match="1 to 10"):
            ddim_timesteps(10, steps)


def test_equations() -> None:
    now, later = torch.tensor(0.2), torch.tensor(0.5)
    assert ddim_sigma(now, later, 0.0) == 0
    # eta = 1 is DDPM's posterior variance beta (1 - alpha_bar') / (1 - alpha_bar), beta = 1 - alpha_bar / alpha_bar'.
    expected = ((1 - 0.5) / (1 - 0.2) * (1 - 0.2 / 0.5)) ** 0.5
    assert ddim_sigma(now, later, 1.0).item() == pytest.approx(expected)
    one, two = torch.tensor([1.0]), torch.tensor([3.0])
    assert [guided(one, two, guidance).item() for guidance in (0.0, 1.0, 2.0)] == [1, 3, 5]


def test_a_step_that_adds_noise_takes_its_power_from_the_predicted_noise():
    """Song et al., 2021, Eq. 12, at eta 0.7, with a model that takes all of its latents for noise."""
    alpha_bar = torch.linspace(0.99, 0.01, 10, dtype=torch.float64)
    model = SimpleNamespace(
        device=torch.device("cpu"),
        schedule=SimpleNamespace(steps=10, alpha_bar=alpha_bar, prediction_type="epsilon"),
        predict=lambda latents, *_: latents,
    )
    given, seen = Conditioning(torch.zeros(1, 1, 1)), []
    shape = (1, 4, 2, 2)
    sample(model, given, given, shape=shape, steps=2, seed=3, eta=0.7, callback=lambda *step: seen.append(step[2]))
    draws = torch.Generator().manual_seed(3)
    z, noise = (torch.randn(shape[1:], generator=draws).double() for _ in range(2))
    now, then = alpha_bar[9], alpha_bar[4]
    sigma = 0.7 * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    z = then.sqrt() * z * (1 - (1 - now).sqrt()) / now.sqrt() + (1 - then - sigma**2).sqrt() * z + sigma * noise
    equal_but_for_rounding(seen[1][0].double(), z * (1 - (1 - then).sqrt()) / then.sqrt())
