"""What every node's schema owes to the page: texts that fit, numbers that show what is set, words it is found by."""

import math

import pytest

PREFIX = "ContextualInversion"
MOST_TOOLTIP = 200
"""Characters: a longer one covers the node that it explains."""
CATEGORIES = {f"Contextual Inversion/{part}" for part in ("Train", "Use", "Look", "Measure", "Demo")}
ADVANCED = {
    "TrainConcept": {"batch", "vectors", "preview_every", "continue_interrupted"},
    "ShowAttention": {
        *("start", "end", "normalise", "overlay", "captions", "special_tokens", "padding", "conditioning"),
    },
}
"""What a person need not see at first; the graphs shipped go without."""


@pytest.fixture
def infos(comfyui):
    ours = {name for name in comfyui.nodes.NODE_CLASS_MAPPINGS if name.startswith(PREFIX)}
    return comfyui.object_info(ours - {f"{PREFIX}TestSink"})


def inputs_of(info: dict) -> dict[str, dict]:
    """The facts of every input by its name, with its kind as "kind"."""
    declared = {name: spec for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}
    return {name: {"kind": kind, **(facts[0] if facts else {})} for name, (kind, *facts) in declared.items()}


def test_no_tooltip_covers_its_node(infos):
    long = {
        f"{name}.{one}": len(text)
        for name, info in infos.items()
        for one, text in [
            ("description", info["description"]),
            *((one, facts["tooltip"]) for one, facts in inputs_of(info).items()),
            *zip(info["output_name"], info["output_tooltips"], strict=True),
        ]
        if len(text) > MOST_TOOLTIP
    }
    assert not long


def test_what_is_kept_of_a_number_is_what_is_shown(infos):
    """The page shows as many digits as the step has, and keeps what `round` says."""
    floats = {
        f"{name}.{one}": facts
        for name, info in infos.items()
        for one, facts in inputs_of(info).items()
        if facts["kind"] == "FLOAT"
    }
    assert len(floats) > 20
    assert {one for one, facts in floats.items() if facts.get("round", facts["step"]) < facts["step"]} == set()
    rates = {one: facts["step"] for one, facts in floats.items() if one.endswith(("rate", "weight", ".norm_weight"))}
    rates.pop(f"{PREFIX}MLMRegularizer.mask_rate")
    rates.pop(f"{PREFIX}PretrainContextualizer.mask_rate")
    assert len(rates) > 10
    assert {one for one, step in rates.items() if f"{5e-6:.{digits_of(step)}f}" == f"{0:.{digits_of(step)}f}"} == set()
    assert {one: facts["default"] for one, facts in floats.items() if shown(facts) != facts["default"]} == {}


def digits_of(step: float) -> int:
    """Digits behind the point, as ComfyUI's page counts them."""
    return max(0, -math.floor(math.log10(step)))


def shown(facts: dict) -> float:
    return float(f"{facts['default']:.{digits_of(facts['step'])}f}")


@pytest.mark.parametrize("node", ADVANCED)
def test_what_is_seldom_changed_is_advanced(infos, node):
    advanced = {name for name, facts in inputs_of(infos[PREFIX + node]).items() if facts.get("advanced")}
    assert ADVANCED[node] <= advanced


def test_every_node_has_a_category_and_words_that_people_type(infos):
    assert {info["category"] for info in infos.values()} == CATEGORIES
    assert [name for name, info in infos.items() if len(info["search_aliases"] or []) < 2] == []
