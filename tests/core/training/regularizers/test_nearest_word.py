"""D3 and D4 as a regularizer: it adds up like every other, and its gradient goes where it should."""

import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel, pictures
from test_trainer import Pull, gradient, vectors

from contextual_inversion.core.maths.contrastive import contrastive_loss, norm_penalty
from contextual_inversion.core.maths.similarity import unit
from contextual_inversion.core.models.vocabulary import candidates
from contextual_inversion.core.training.regularizers.nearest_word import NearestTokenRegularizer
from contextual_inversion.core.training.regularizers.registry import Added
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train


def losses(model, regularizer, **keywords):
    settings = TrainSettings(class_word="dog", steps=2, batch=2, **keywords)
    with train(model, pictures(), settings, regularizers=[regularizer]) as run:
        next(run)
        return run.prepared.objective.gather(0, lambda loss: None)[0]


@pytest.mark.parametrize("encoders", [1, 2])
def test_its_terms_are_the_formulas(encoders):
    model = StubModel(encoders=encoders)
    words = {name: e.table().detach() for name, e in model.text_encoders.items()}
    bank = {name: torch.randn(5, table.shape[1]) for name, table in words.items()}
    found = losses(model, NearestTokenRegularizer(bank=bank, neighbours=3), vectors=2)
    expected_c, expected_2 = [], []
    with train(model, pictures(), TrainSettings(class_word="dog", steps=2, batch=2, vectors=2)) as run:
        next(run)
        start = run.prepared.objective.prompts.word.vectors
        for name, encoder in model.text_encoders.items():
            v = start[name].detach()
            allowed = candidates(encoder, readable=False)
            near = allowed.directions[torch.tensor([[allowed.ids.index(i) for i in r] for r in allowed.nearest(v, 3)])]
            expected_c.append(contrastive_loss(v, near, bank[name]))
            expected_2.append(norm_penalty(v))
    torch.testing.assert_close(found["nearest/contrastive"], torch.stack(expected_c).sum())
    torch.testing.assert_close(found["nearest/norm"], torch.stack(expected_2).sum())


def test_each_layers_vector_counts():
    """XTI: the mean over the vectors, not what is said of their mean."""
    settings = TrainSettings(class_word="dog", steps=2, batch=2, method="xti")
    regularizer = NearestTokenRegularizer(neighbours=3, words=0)
    model = StubModel()
    with train(model, pictures(), settings, regularizers=[regularizer]) as run:
        next(run)
        slots = run.learner.vectors["clip_l"]
        slots.data += torch.randn(slots.shape, generator=torch.Generator().manual_seed(0))
        found = run.prepared.objective.gather(0, lambda loss: None)[0]
    expected = slots.detach().double().square().sum(-1).mean()
    torch.testing.assert_close(found["nearest/norm"].double(), expected, rtol=1e-5, atol=0)


def test_it_adds_up_with_others():
    model = StubModel()
    parts = [Pull(0.5), NearestTokenRegularizer(weight=0.3, norm_weight=0.02, neighbours=4, words=8)]
    plain, _ = gradient(model)
    together, _ = gradient(model, parts)
    single = [gradient(model, [part])[0] - plain for part in parts]
    assert all(float(one.abs().max()) > 0 for one in single)
    # Differences round as the gradients do whose differences they are.
    equal_but_for_rounding(together, plain + sum(single))


def test_only_known_words_are_near():
    """Of a narrow model most rows of the vocabulary were never trained: they are no words to it."""
    model = StubModel()
    known = torch.tensor([3, 5, 7])
    regularizer = NearestTokenRegularizer(known={"clip_l": known}, neighbours=3, words=0)
    regularizer.prepare(model, "dog", 1)
    rows = unit(model.text_encoders["clip_l"].table().detach()[known])
    torch.testing.assert_close(regularizer._directions["clip_l"], rows)


def test_weights_of_zero_change_nothing(run):
    nothing = NearestTokenRegularizer(weight=0, norm_weight=0)
    assert torch.equal(vectors(run(StubModel())), vectors(run(StubModel(), regularizers=[nothing])))


def test_the_same_seed_draws_the_same_words(run):
    def once(seed):
        return vectors(run(StubModel(), regularizers=[NearestTokenRegularizer(weight=1, words=8)], seed=seed))

    assert torch.equal(once(3), once(3))


def test_without_negatives_the_contrastive_loss_is_zero():
    found = losses(StubModel(), NearestTokenRegularizer(words=0))
    assert float(found["nearest/contrastive"]) == 0


def test_it_keeps_the_vector_near_words(run):
    def nearness(weight):
        model = StubModel()
        regularizer = NearestTokenRegularizer(weight=weight, norm_weight=0, words=32, neighbours=3)
        learned = run(model, regularizers=[regularizer], steps=40, learning_rate=0.05).concept.vectors["clip_l"]
        table = unit(model.text_encoders["clip_l"].table().detach())
        return float((unit(learned) @ table.mT).topk(3).values.mean())

    assert nearness(1.0) > nearness(0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"weight": -1}, "negative"), ({"neighbours": 0}, "neighbour"), ({"tau": 0}, "tau")],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NearestTokenRegularizer(**arguments)


def test_a_bank_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"bank of other subjects has no \(M, 32\) for clip_l"):
        NearestTokenRegularizer(bank={"clip_l": torch.ones(3, 5)}).prepare(StubModel(), "dog", 1)


@pytest.mark.parametrize("width", [7, None])
def test_a_bank_of_another_model_is_found_before_pictures_are_encoded(width):
    model = StubModel()
    bank = {"clip_g": torch.randn(5, 32)} if width is None else {"clip_l": torch.randn(5, width)}
    with pytest.raises(ValueError, match=r"bank of other subjects.*is for another model than .*; load one"):
        Added("nearest", {"bank": bank}).fitting(model, "ti")
    assert Added("nearest", {"bank": bank, "weight": 0.0}).fitting(model, "ti").weight == 0
