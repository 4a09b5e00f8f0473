"""D3 and D4 of what a tuning-encoder predicts: the formulas, who is whose negative, and which words count."""

import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel

from contextual_inversion.core.maths.similarity import unit
from contextual_inversion.core.models.vocabulary import HardWords, candidates, word_of
from contextual_inversion.core.training.one_picture.regularization import EmbeddingRegularization


def predictions(model, count=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    encoders = model.text_encoders.items()
    return {name: torch.randn(count, encoder.width, generator=draws) for name, encoder in encoders}


def contrastive(anchors, words, negatives, positives, tau):
    """METHODS.md D3 in float64, one anchor after another; `negatives` says for each anchor which rows."""
    losses = []
    for anchor, others in zip(unit(anchors.double()), negatives, strict=True):
        near = (words.double() @ anchor).topk(positives).values / tau
        far = unit(others.double()) @ anchor / tau
        losses.append(torch.logsumexp(torch.cat([near, far]), 0) - torch.logsumexp(near, 0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("encoders", [1, 2])
@pytest.mark.parametrize("banked", [False, True])
def test_its_terms_are_the_formulas_added_over_the_encoders(encoders, banked):
    model = StubModel(encoders=encoders)
    v, bank = predictions(model), predictions(model, 4, seed=1) if banked else None
    terms = EmbeddingRegularization(model, positives=2, temperature=0.2, negatives=bank)
    found = terms(v)
    expected = torch.zeros(2, dtype=torch.float64)
    for name, encoder in model.text_encoders.items():
        # All other pictures of the batch, never the anchor itself; and the bank.
        others = [torch.cat([v[name][:row], v[name][row + 1 :]]) for row in range(3)]
        if banked:
            others = [torch.cat([one, bank[name]]) for one in others]
        words = candidates(encoder, readable=False).directions
        expected[0] += contrastive(v[name], words, others, 2, 0.2)
        expected[1] += v[name].double().square().sum(1).mean()
    equal_but_for_rounding(torch.stack(found).double(), expected)


def test_a_share_of_a_batch_pulls_against_all_of_it():
    model = StubModel()
    v = predictions(model, 4)
    share = {"clip_l": v["clip_l"][:2]}
    terms = EmbeddingRegularization(model, positives=2)
    (whole, _), (shared, l2) = terms(v), terms(share, v)
    assert torch.equal(whole, shared)
    torch.testing.assert_close(l2, share["clip_l"].square().sum(1).mean())


def test_a_single_picture_without_a_bank_has_no_negative():
    model = StubModel()
    assert float(EmbeddingRegularization(model)(predictions(model, 1))[0]) == 0


def test_detached_negatives_keep_the_value_and_change_the_gradient():
    model, found = StubModel(), []
    for detached in (False, True):
        v = predictions(model)["clip_l"].requires_grad_(True)
        loss, _ = EmbeddingRegularization(model, detach_negatives=detached)({"clip_l": v})
        found.append((loss.detach(), *torch.autograd.grad(loss, v)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1])


def test_only_known_words_are_neighbours_and_all_where_none_is_known():
    model = StubModel()
    encoder, v = model.text_encoders["clip_l"], predictions(model, 2)
    known = torch.tensor([3, 7, 11])
    terms = EmbeddingRegularization(model, positives=10, known={"clip_l": known})
    others = [v["clip_l"][1:], v["clip_l"][:1]]
    expected = contrastive(v["clip_l"], unit(encoder.table().detach()[known]), others, 3, 0.07)
    equal_but_for_rounding(terms(v)[0].double(), expected)
    nobody = torch.tensor([encoder.bos])
    assert candidates(encoder, readable=False, known=nobody).ids == candidates(encoder, readable=False).ids


@pytest.mark.parametrize("encoders", [1, 2])
def test_the_hard_word_is_the_nearest_that_the_model_knows(encoders, monkeypatch):
    model = StubModel(encoders=encoders)
    for encoder in model.text_encoders.values():
        # Letters only, so that every token may be named.
        object.__setattr__(
            encoder, "token_text", lambda token: "a" + chr(97 + token // 26) + chr(97 + token % 26) + "</w>"
        )
    table = {name: encoder.table().detach() for name, encoder in model.text_encoders.items()}
    wanted = {name: torch.cat([rows[5:6] + 0.1, rows[9:10] - 0.1]) for name, rows in table.items()}
    text = model.encoders[0].token_text
    assert HardWords(model, None)(wanted) == [word_of(text(5)), word_of(text(9))]
    known = {name: torch.tensor([9, 20]) for name in table}
    found = HardWords(model, known)(wanted)
    nearer = 9 if (unit(table["clip_l"][[9, 20]]) @ unit(wanted["clip_l"])[0]).argmax() == 0 else 20
    assert found == [word_of(text(nearer)), word_of(text(9))]
