"""What goes through the text encoder in a step, counted: each distinct prompt once, and gradients only for the word."""

import pytest
import torch
from stub_model import StubModel, pictures

from contextual_inversion.core.models.protocol import Conditioning
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.training.trainer import train

TEMPLATES = tuple(f"a photo of a {{}} {place}" for place in ("at night", "in the snow"))


def counting(model):
    """A list that gets, for every call of every text encoder, how many rows it was given and whether they learn."""
    found = []
    for encoder in model.text_encoders.values():

        def counted(inputs, ids, encode=encoder.encode):
            found.append((len(inputs), inputs.requires_grad))
            return encode(inputs, ids)

        encoder.encode = counted
    return found


def run_of(model, **settings):
    options = {"class_word": "dog", "batch": 4, "templates": TEMPLATES, **settings}
    return train(model, pictures(), TrainSettings(**options))


@pytest.mark.parametrize("encoders", [1, 2])
def test_each_distinct_prompt_is_encoded_once_a_step(encoders):
    model = StubModel(encoders=encoders)
    with run_of(model) as run:
        next(run)
        rows = counting(model)
        for step in range(12):
            rows.clear()
            distinct = len(set(run.prepared.objective.instances.draw(step).templates))
            run.prepared.objective.gather(step, lambda _: None)
            assert rows == [(distinct, True)] * encoders
    assert distinct <= 2


@pytest.mark.parametrize("method", ["ti", "xti"])
@pytest.mark.parametrize("encoders", [1, 2])
def test_the_gradient_is_that_of_every_sample_encoded_for_itself(encoders, method):
    model = StubModel(encoders=encoders)
    with run_of(model, method=method) as run:
        next(run)
        objective, leaves = run.prepared.objective, list(run.learner.leaves.values())
        step = next(one for one in range(50) if len(set(objective.instances.draw(one).templates)) == 2)
        losses = []
        objective.gather(step, losses.append)
        ours = torch.autograd.grad(losses[0], leaves)

        def each(templates):
            encoded = objective.prompts.with_concept([objective.settings.prompts[index] for index in templates])
            return objective.prompts.conditioning(encoded)

        objective._instance_conditioning = each
        objective.gather(step, losses.append)
        theirs = torch.autograd.grad(losses[1], leaves)
    torch.testing.assert_close(losses[0], losses[1])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_plain_word_is_encoded_once_a_run_and_without_gradient():
    model = StubModel()
    core = CoReRegularizer(["a {} on the beach"], embedding_weight=1.0, attention_weight=1.0)
    settings = TrainSettings("dog", batch=4, templates=TEMPLATES[:1])
    with train(model, pictures(), settings, regularizers=[core]) as run:
        next(run)
        rows = counting(model)
        for step in range(3):
            run.prepared.objective.gather(step, lambda _: None)
    # Of each step CoRe's prompt and the instance prompt with the word; of the first, the reference beside them.
    assert rows == [(1, True), (1, False), (1, True), (1, True), (1, True), (1, True), (1, True)]


def test_rows_repeat_what_there_is():
    generator = torch.Generator().manual_seed(0)
    context, y, layers = (torch.randn(shape, generator=generator) for shape in ((3, 2, 4), (3, 5), (6, 3, 2, 4)))
    whole = Conditioning(context, y, layers)
    found = whole.rows([2, 0, 2])
    at = torch.tensor([2, 0, 2])
    assert torch.equal(found.context, context[at])
    assert torch.equal(found.y, y[at])
    assert torch.equal(found.layers, layers[:, at])
    assert whole.rows([0, 1, 2]) is whole
    assert torch.equal(whole.rows([1, 1]).context, context[[1, 1]])
    plain = Conditioning(context).rows([1, 0])
    assert (plain.y, plain.layers) == (None, None)
