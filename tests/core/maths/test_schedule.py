"""The schedule against the one diffusers ships, and the laws that tie noise, v and z_0 together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.maths import schedule

diffusers = pytest.importorskip("diffusers")

KINDS = ("epsilon", "v_prediction", "sample")
SCHEDULES = {
    "scaled_linear": (schedule.scaled_linear_betas(), {"beta_start": 0.00085, "beta_end": 0.012}),
    "linear": (np.linspace(1e-4, 0.02, 1000), {"beta_start": 1e-4, "beta_end": 0.02}),
}
ALPHA_BAR = schedule.alpha_bar(schedule.scaled_linear_betas())

seeds = st.integers(0, 2**32 - 1)
timesteps = st.lists(st.integers(0, 999), min_size=1, max_size=4)
kinds = st.sampled_from(KINDS)
every_kind = st.sampled_from((*KINDS, "flow"))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("name", SCHEDULES)
def test_alpha_bar_is_that_of_diffusers(name):
    betas, settings = SCHEDULES[name]
    theirs = diffusers.DDPMScheduler(beta_schedule=name, **settings)
    np.testing.assert_allclose(betas, theirs.betas, rtol=1e-5)
    np.testing.assert_allclose(
        schedule.alpha_bar(betas), theirs.alphas_cumprod, rtol=1e-4
    )  # theirs is a float32 product


def test_alpha_bar_is_the_cumulative_product():
    betas = schedule.scaled_linear_betas()
    np.testing.assert_allclose(schedule.alpha_bar(betas), np.cumprod(1 - betas), rtol=1e-12)


def test_betas_are_made_by_any_library():
    np.testing.assert_allclose(schedule.scaled_linear_betas(xp=torch), schedule.scaled_linear_betas(), rtol=1e-6)


@given(seeds, timesteps)
def test_noise_and_velocity_are_those_of_diffusers(seed, t):
    theirs = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    t = torch.asarray(t)
    z, noise = (torch.asarray(normal(seed + i, len(t), 4, 3, 3), dtype=torch.float32) for i in range(2))
    a = schedule.at_timesteps(theirs.alphas_cumprod, t)
    torch.testing.assert_close(schedule.add_noise(z, noise, a), theirs.add_noise(z, noise, t))
    torch.testing.assert_close(schedule.velocity(z, noise, a), theirs.get_velocity(z, noise, t))


@given(seeds, st.integers(0, 999), kinds)
def test_the_predicted_sample_is_that_of_diffusers(seed, t, kind):
    theirs = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind, clip_sample=False
    )
    z_t, prediction = (torch.asarray(normal(seed + i, 1, 4, 3, 3)) for i in range(2))
    expected = theirs.step(prediction, t, z_t, generator=torch.Generator()).pred_original_sample
    a = theirs.alphas_cumprod[t]
    torch.testing.assert_close(schedule.predicted_sample(kind, prediction, z_t, a), expected, rtol=1e-4, atol=1e-4)


def test_the_signal_to_noise_ratio_is_that_of_the_euler_scheduler():
    theirs = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    np.testing.assert_allclose(np.flip(schedule.snr(ALPHA_BAR) ** -0.5), theirs.sigmas[:-1], rtol=1e-4)


@given(seeds, timesteps)
def test_the_forward_process_keeps_unit_power(seed, t):
    a = schedule.at_timesteps(ALPHA_BAR, np.asarray(t))
    z, noise = (np.ones((len(t), 1)) * s for s in (1.0, -1.0))
    power = schedule.add_noise(z, 0 * noise, a) ** 2 + schedule.add_noise(0 * z, noise, a) ** 2
    np.testing.assert_allclose(power, 1.0, rtol=1e-12)


@given(seeds, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_flow_matching_is_the_same_forward_process_in_another_measure(seed, sigmas):
    """x = (1 - sigma) z_0 + sigma noise, asked for d x / d sigma."""
    sigma = np.asarray(sigmas)
    z, noise = normal(seed, len(sigma), 2, 3), normal(seed + 1, len(sigma), 2, 3)
    a = schedule.alpha_bar_of_sigma(sigma)
    signal, spread = np.sqrt(a), np.sqrt(1 - a)
    np.testing.assert_allclose(spread / (signal + spread), sigma, atol=1e-7)
    s = sigma[:, None, None]
    mixed = schedule.flow_latents(schedule.add_noise(z, noise, a), a)
    np.testing.assert_allclose(mixed, (1 - s) * z + s * noise, atol=1e-6)
    v = schedule.prediction_target("flow", z, noise, a)
    np.testing.assert_allclose(v, noise - z)
    np.testing.assert_allclose(schedule.predicted_sample("flow", v, schedule.add_noise(z, noise, a), a), z, atol=1e-6)


def restated(source, target, prediction, z_t, a):
    """A prediction of one kind as another: what it says of z_0 and of the noise, put together anew."""
    clean, noise = (say(source, prediction, z_t, a) for say in (schedule.predicted_sample, schedule.predicted_noise))
    return schedule.prediction_target(target, clean, noise, a)


@given(seeds, timesteps, every_kind, every_kind)
def test_any_prediction_can_be_restated_as_any_other(seed, t, source, target):
    z, noise = normal(seed, len(t), 2, 3), normal(seed + 1, len(t), 2, 3)
    a = schedule.at_timesteps(ALPHA_BAR, np.asarray(t))
    z_t = schedule.add_noise(z, noise, a)
    prediction = schedule.prediction_target(source, z, noise, a)  # a perfect network
    found = restated(source, target, prediction, z_t, a)
    np.testing.assert_allclose(found, schedule.prediction_target(target, z, noise, a), rtol=1e-8, atol=1e-9)
    wrong = normal(seed + 2, len(t), 2, 3)  # the way there and back holds for an imperfect one as well
    back = restated(target, source, restated(source, target, wrong, z_t, a), z_t, a)
    np.testing.assert_allclose(back, wrong, rtol=1e-8, atol=1e-9)


@given(seeds, timesteps, st.floats(0.5, 20), every_kind)
def test_min_snr_is_one_weighting_whatever_the_network_predicts(seed, t, gamma, kind):
    """The weighted loss of one imperfect network is the same number whichever way its prediction is stated."""
    z, noise, wrong = (normal(seed + i, len(t), 2, 3) for i in range(3))
    a = schedule.at_timesteps(ALPHA_BAR, np.asarray(t))
    z_t = schedule.add_noise(z, noise, a)
    losses = []
    for stated in (kind, "sample"):
        prediction = restated("v_prediction", stated, wrong, z_t, a)
        target = schedule.prediction_target(stated, z, noise, a)
        weight = schedule.min_snr_weight(stated, a, gamma)
        losses.append(schedule.diffusion_loss(prediction, target, sample_weight=weight))
    np.testing.assert_allclose(*losses, rtol=1e-7)


@given(st.floats(0.001, 0.999), st.floats(0.5, 20))
def test_min_snr_weights_are_the_formulas(a, gamma):
    snr = a / (1 - a)
    weights = [float(schedule.min_snr_weight(kind, np.asarray(a), gamma)) for kind in KINDS]
    expected = [min(snr, gamma) / snr, min(snr, gamma) / (snr + 1), min(snr, gamma)]
    np.testing.assert_allclose(weights, expected, rtol=1e-9)
    np.testing.assert_allclose(schedule.snr(np.asarray(a)), snr, rtol=1e-9)


@given(seeds)
def test_the_loss_is_the_mean_squared_error(seed):
    p, q = (torch.asarray(normal(seed + i, 3, 4, 5, 5)) for i in range(2))
    torch.testing.assert_close(schedule.diffusion_loss(p, q), torch.nn.functional.mse_loss(p, q))
    ones = torch.ones(3, 1, 5, 5)
    torch.testing.assert_close(
        schedule.diffusion_loss(p, q, weight_map=ones, sample_weight=torch.ones(3)), schedule.diffusion_loss(p, q)
    )


@given(seeds, st.floats(0.1, 10))
def test_a_mask_hides_what_it_covers_and_its_size_does_not_count(seed, scale):
    p, q = normal(seed, 2, 3, 4, 4), normal(seed + 1, 2, 3, 4, 4)
    mask = np.zeros((2, 1, 4, 4), dtype=bool)
    mask[:, :, 1:3, :2] = True
    loss = schedule.diffusion_loss(p, q, weight_map=mask)
    np.testing.assert_allclose(loss, schedule.diffusion_loss(p[:, :, 1:3, :2], q[:, :, 1:3, :2]), rtol=1e-12)
    elsewhere = np.where(mask, p, normal(seed + 2, 2, 3, 4, 4))
    assert schedule.diffusion_loss(elsewhere, q, weight_map=mask) == loss
    np.testing.assert_allclose(schedule.diffusion_loss(p, q, weight_map=mask * scale), loss, rtol=1e-12)


def test_an_empty_mask_counts_as_no_error(autograd):
    p, q = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    mask = np.zeros((2, 1, 4, 4))
    mask[1] = 1
    (gradient,) = autograd.gradient(
        lambda x: schedule.diffusion_loss(x, autograd.array(q), weight_map=autograd.array(mask)), p
    )
    assert np.all(gradient[0] == 0)
    np.testing.assert_allclose(gradient[1], 2 * (p - q)[1] / q[1].size / 2, rtol=1e-9)


@given(seeds)
def test_sample_weights_multiply_each_samples_error(seed):
    p, q, w = normal(seed, 3, 2, 4), normal(seed + 1, 3, 2, 4), np.abs(normal(seed + 2, 3))
    each = [w[i] * schedule.diffusion_loss(p[i : i + 1], q[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(schedule.diffusion_loss(p, q, sample_weight=w), np.mean(each), rtol=1e-12)


def test_wrong_shapes_and_names_are_named():
    z = np.zeros((2, 4, 3, 3))
    with pytest.raises(ValueError, match=r"z_0 \(2, 4, 3, 3\), noise \(1, 4, 3, 3\)"):
        schedule.add_noise(z, z[:1], np.ones(2))
    with pytest.raises(ValueError, match=r"values \(3,\), samples \(2, 4, 3, 3\)"):
        schedule.add_noise(z, z, np.ones(3))
    with pytest.raises(ValueError, match=r"weight_map \(2, 3, 3\)"):
        schedule.diffusion_loss(z, z, weight_map=np.ones((2, 3, 3)))
    with pytest.raises(ValueError, match=r"prediction \(2, 4, 3, 3\), target \(2, 4, 3\)"):
        schedule.diffusion_loss(z, z[..., 0])
    for convert in (schedule.prediction_target, schedule.predicted_noise, schedule.predicted_sample):
        with pytest.raises(ValueError, match="unknown prediction type 'score'"):
            convert("score", z, z, np.ones(2))
