"""What a model's text encoders say of its family."""

from types import SimpleNamespace

import pytest

from contextual_inversion.core.models.families import drawn_resolution, is_narrow, native_resolution


@pytest.mark.parametrize(
    ("widths", "prediction", "native", "drawn"),
    [
        ({"clip_l": 767}, "epsilon", None, 128),
        ({"clip_l": 768}, "v_prediction", 512, 512),
        ({"clip_h": 1024}, "epsilon", 512, 512),
        ({"clip_h": 1024}, "v_prediction", 768, 768),
        ({"clip_l": 768, "clip_g": 1280}, "epsilon", 1024, 1024),
    ],
)
def test_a_family_draws_at_the_size_that_it_was_trained_at(widths, prediction, native, drawn):
    encoders = {name: SimpleNamespace(width=width) for name, width in widths.items()}
    model = SimpleNamespace(text_encoders=encoders, schedule=SimpleNamespace(prediction_type=prediction))
    assert native_resolution(model) == native
    assert drawn_resolution(model) == drawn
    assert is_narrow(model) == (native is None)
