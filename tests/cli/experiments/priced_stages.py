"""A model that nothing trains, and what the stages of every pipeline cost on it: a second a step each."""

from types import SimpleNamespace

from contextual_inversion.cli.experiments.pipelines import RECIPES, Cost

NARROW = SimpleNamespace(
    text_encoders={"clip_l": SimpleNamespace(width=128)},
    schedule=SimpleNamespace(prediction_type="v_prediction"),
    fingerprint="model",
)
COSTS = dict.fromkeys(
    {
        *(one.first_cost({"core_attention": share}) for one in RECIPES.values() for share in (0.0, 1.0)),
        "lora",
        "tlora",
        "self",
    },
    Cost(0.0, 1.0),
)
