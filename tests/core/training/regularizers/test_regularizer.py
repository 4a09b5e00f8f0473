"""What holds for every regularizer: weight 0 looks at nothing, and whatever decides its numbers is in its state."""

import inspect
import json
from dataclasses import replace

import pytest
from stub_model import StubModel
from test_mlm import PROMPTS, contextualizer

from contextual_inversion.core.prompts.rich import ListedPrompts
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.regularizers.mlm import MLMRegularizer
from contextual_inversion.core.training.regularizers.prior import PriorPreservation
from contextual_inversion.core.training.regularizers.seam import Terms


def psi(**keywords):
    return contextualizer(StubModel().text_encoders["clip_l"], **keywords)


def of_another_encoder():
    one = psi()
    one.encoder = replace(one.encoder, fingerprint="another")
    return one


CORE = {
    "prompts": [["a {} at sea"]],
    "embedding_weight": [0.5],
    "attention_weight": [0.5],
    "axis": ["official"],
    "attention_mode": ["paper"],
    "bos": [False],
    "padding": [True],
    "attention_batch": [2],
}
MLM = {
    "contextualizers": [psi(seed=1), of_another_encoder()],
    "prompts": [ListedPrompts(("a {} in the snow",))],
    "weight": [0.5],
    "rho": [0.5],
    "batch": [3],
    "beside_class": [False],
}
PRIOR = {
    "resolution": [128],
    "weight": [0.5],
    "pictures": [3],
    "batch": [3],
    "prompt": ["the {}"],
    "steps": [3],
    "guidance": [1.0],
    "seed": [1],
}
EVERY = [
    (CoReRegularizer, {"prompts": PROMPTS.prompts}, CORE, {"places"}),
    (MLMRegularizer, {"contextualizers": psi(), "prompts": PROMPTS}, MLM, set()),
    (PriorPreservation, {"resolution": 64}, PRIOR, {"folder", "progress", "applied"}),
]
"""Class, what it cannot do without, other values of its options, and options that decide no number of a training."""


@pytest.mark.parametrize(("kind", "needed", "otherwise", "others"), EVERY)
def test_every_option_that_decides_a_number_is_in_the_state(kind, needed, otherwise, others):
    assert set(inspect.signature(kind).parameters) == {*otherwise, *others}
    state = kind(**needed).state()
    assert json.loads(json.dumps(state)) == state
    for name, values in otherwise.items():
        for value in values:
            assert kind(**{**needed, name: value}).state() != state, name


def test_a_weight_of_zero_looks_at_nothing():
    assert CoReRegularizer(PROMPTS.prompts, embedding_weight=0, attention_weight=0)(None) == Terms()
    assert MLMRegularizer(psi(), PROMPTS, weight=0)(None) == Terms()
    assert PriorPreservation(resolution=64, weight=0)(None) == Terms()


def test_one_contextualizer_a_text_encoder():
    with pytest.raises(ValueError, match="one contextualizer a text encoder"):
        MLMRegularizer([psi(), psi(seed=1)], PROMPTS)
