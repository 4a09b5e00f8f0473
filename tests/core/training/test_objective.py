"""The diffusion loss by hand, and every term under a name and from random numbers of its own."""

import pytest
import torch
from stub_model import StubModel, pictures
from test_trainer import Pull

from contextual_inversion.core.maths.schedule import add_noise, velocity
from contextual_inversion.core.training.regularizers.seam import LossTerm, Terms
from contextual_inversion.core.training.settings import Augmentation, TrainSettings
from contextual_inversion.core.training.trainer import train


def started(regularizers=(), model=None, masks=None, **keywords):
    settings = TrainSettings(**{"class_word": "dog", "batch": 4, **keywords})
    run = train(model or StubModel(), pictures(), settings, regularizers=regularizers, masks=masks)
    next(run)
    return run


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_diffusion_loss_is_the_weighted_mean_of_squares(prediction, gamma):
    """METHODS.md C1 under masks, and min-SNR weights: min(snr, gamma) / snr for noise, / (snr + 1) for velocity."""
    masks = torch.ones(3, 64, 64)
    masks[:, :16] = 0
    with started(model=StubModel(prediction=prediction), masks=masks, min_snr_gamma=gamma) as run:
        losses, total = run.prepared.objective.gather(2, lambda _: None)
        draws = run.prepared.objective.instances.draw(2)
        alpha_bar = run.prepared.objective.instances.noising.alpha_bar[draws.timesteps]
        z_0, counts = run.prepared.bank.latents[draws.rows], run.prepared.bank.weights[draws.rows].double()
        with torch.no_grad():
            encodings = run.prepared.prompts.with_concept(["a photo of a {}"])
            given = run.prepared.prompts.conditioning(encodings).expand(4)
            output = run.model.predict(add_noise(z_0, draws.noise, alpha_bar), draws.timesteps, given)
    target = draws.noise if prediction == "epsilon" else velocity(z_0, draws.noise, alpha_bar)
    errors = (output - target).double().square() * counts
    each = errors.sum((1, 2, 3)) / (4 * counts.sum((1, 2, 3)))
    snr = alpha_bar.double() / (1 - alpha_bar.double())
    if gamma is not None:
        each = each * snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(losses["diffusion"].double(), each.mean(), rtol=1e-4, atol=0)
    assert torch.equal(total, losses["diffusion"])


def test_every_version_of_a_picture_is_looked_at():
    with started(augmentation=Augmentation(bank=3)) as run:
        rows = torch.cat([run.prepared.objective.instances.draw(step).rows for step in range(12)])
    assert set(rows.tolist()) == set(range(9))


def test_two_regularizers_of_one_name_keep_their_terms_and_their_random_numbers():
    one, other = Pull(0.5), Pull(0.25)
    with started([one, other]) as run:
        losses, total = run.prepared.objective.gather(0, lambda _: None)
        for step in range(1, 12):
            run.prepared.objective.gather(step, lambda _: None)
    expected = losses["diffusion"] + 0.5 * losses["pull/norm"] + 0.25 * losses["pull/norm#2"]
    torch.testing.assert_close(total, expected)
    assert one.drawn != other.drawn


def test_a_term_that_is_called_as_the_diffusion_loss_does_not_take_its_place():
    class Namesake(Pull):
        def __call__(self, step):
            (term,) = super().__call__(step).losses.values()
            return Terms({"diffusion": term})

    with started() as plain, started([Namesake(0.5)]) as run:
        alone, _ = plain.prepared.objective.gather(0, lambda _: None)
        losses, total = run.prepared.objective.gather(0, lambda _: None)
    assert torch.equal(losses["diffusion"], alone["diffusion"])
    torch.testing.assert_close(total, losses["diffusion"] + 0.5 * losses["diffusion#2"])


def test_a_term_that_weighs_nothing_is_shown_and_not_looked_at():
    class Broken(Pull):
        def __call__(self, step):
            return Terms({"pull/norm": LossTerm(torch.tensor(float("nan")), self.weight)})

    with started([Broken(0.0)]) as run:
        losses, total = run.prepared.objective.gather(0, lambda _: None)
    assert losses["pull/norm"].isnan()
    assert torch.equal(total, losses["diffusion"])


def test_a_seed_of_its_own_is_every_regularizers():
    drawn = []
    for seed in (1, 2):
        pull = Pull(0.5)
        with started([pull], seed=seed) as run:
            for step in range(12):
                run.prepared.objective.gather(step, lambda _: None)
        drawn.append(pull.drawn)
    assert drawn[0] != drawn[1]
