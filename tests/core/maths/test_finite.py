"""Numbers that are none are refused by name; masks that show nothing are none."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from contextual_inversion.core.maths.finite import require_finite, require_finite_fields
from contextual_inversion.core.maths.masks import FAINTEST, shows_something
from contextual_inversion.core.training.contextualizer.pretraining import PretrainSettings
from contextual_inversion.core.training.one_picture.settings import EncoderPretrainSettings
from contextual_inversion.core.training.one_picture.tuning import TuneSettings
from contextual_inversion.core.training.regularizers.context import CoReRegularizer
from contextual_inversion.core.training.regularizers.nearest_word import NearestTokenRegularizer
from contextual_inversion.core.training.regularizers.prior import PriorPreservation
from contextual_inversion.core.training.settings import TrainSettings

NONE = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", NONE)
def test_what_is_no_number_is_named(value):
    require_finite(one=1.0, two=None, three=-1e308, four=0)
    with pytest.raises(ValueError, match=r"rate is (nan|inf|-inf)"):
        require_finite(one=1.0, rate=value)


@dataclass
class Record:
    name: str = "nan"
    rate: float = 0.5
    window: tuple[float, float] = (0.0, 1.0)
    left_out: float | None = None


@pytest.mark.parametrize("value", NONE)
def test_every_number_of_a_record_is_asked(value):
    require_finite_fields(Record())
    for field, given in (("rate", value), ("window", (0.0, value))):
        with pytest.raises(ValueError, match=field):
            require_finite_fields(Record(**{field: given}))


FIELDS = [
    *(
        (TrainSettings, {"class_word": "dog"}, name)
        for name in ("learning_rate", "diffusion_weight", "preview_guidance")
    ),
    *((TuneSettings, {}, name) for name in ("lora_learning_rate", "contrastive", "l2", "temperature")),
    *((PretrainSettings, {}, name) for name in ("learning_rate", "weight_decay", "rho")),
    *((EncoderPretrainSettings, {}, name) for name in ("learning_rate", "contrastive", "l2", "weight_decay")),
    *((NearestTokenRegularizer, {}, name) for name in ("weight", "norm_weight")),
    *((CoReRegularizer, {"prompts": ["a {}"]}, name) for name in ("embedding_weight", "attention_weight")),
]


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize(("kind", "others", "name"), FIELDS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_no_training_takes_one(kind, others, name, value):
    with pytest.raises(ValueError, match=name):
        kind(**others, **{name: value})


def test_prior_preservation_takes_none(tmp_path):
    with pytest.raises(ValueError, match="prior_preservation is nan"):
        PriorPreservation(tmp_path, weight=math.nan, resolution=64)


@pytest.mark.parametrize("make", [np.full, torch.full])
def test_a_mask_shows_something_above_a_rounding(make):
    assert not shows_something(make((4, 4), 1 / 255))
    assert not shows_something(make((4, 4), FAINTEST))
    faint = make((4, 4), 0.0)
    faint[2, 1] = 0.1
    assert shows_something(faint)
