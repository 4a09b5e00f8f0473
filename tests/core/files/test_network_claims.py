"""A network's header is compared with its tensors before anything is built of it, whatever number it names."""

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from contextual_inversion.core.files import ConceptFileError, describe_network
from contextual_inversion.core.files.contextualizer import load_contextualizer
from contextual_inversion.core.files.tuning_encoder import load_tuning_encoder
from contextual_inversion.core.models.tiny.weights import tiny_weights_path
from contextual_inversion.core.networks.contextualizer import Contextualizer
from contextual_inversion.core.networks.tuning_encoder import TuningEncoder

LOADERS = {"contextualizer": load_contextualizer, "tuning_encoder": load_tuning_encoder}
HUGE = 10**6


@pytest.fixture(scope="module")
def bundled():
    """kind -> tensors and facts of the network that comes with the pack."""
    found = {}
    for kind in LOADERS:
        path = tiny_weights_path(kind)
        with safe_open(path, "pt") as file:
            found[kind] = load_file(path), json.loads(file.metadata()["contextual_inversion"])
    return found


def numbers_of(facts, under=()):
    """The path of every number in a network's facts, but for those that only say how it was trained."""
    items = facts.items() if isinstance(facts, dict) else enumerate(facts)
    for key, value in items:
        if key in ("provenance", "version", "seed", "classes"):
            continue
        if isinstance(value, dict | list):
            yield from numbers_of(value, (*under, key))
        elif isinstance(value, int):
            yield (*under, key)


def with_number(facts, place, value):
    changed = copy.deepcopy(facts)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def places(kind, facts):
    """All of them, and of the long lists (hundreds of matrices alike) the first."""
    found = list(numbers_of(facts))
    return [place for place in found if place[:2] != ("shape", "targets")] + [
        place for place in found if place[:2] == ("shape", "targets")
    ][:2]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("value", [HUGE, 2**62, 10**30, -1, 0, 2.5, "2", None, [2], math.inf], ids=str)
def test_a_number_that_the_tensors_do_not_show_is_never_built(tmp_path, bundled, kind, value, monkeypatch):
    """Every number of the header in turn: refused in words, and the network is made without memory at most."""
    tensors, facts = bundled[kind]
    made = []
    for network in (Contextualizer, TuningEncoder):
        start = network.__init__

        def noticed(self, *args, start=start, **kwargs):
            made.append(torch.empty(0).device.type)
            start(self, *args, **kwargs)

        monkeypatch.setattr(network, "__init__", noticed)
    path = tmp_path / "claims.safetensors"
    for place in places(kind, facts):
        made.clear()
        if path.exists():
            path.unlink()
        save_file(tensors, path, {"contextual_inversion": json.dumps(with_number(facts, place, value))})
        if (place[0] == "timesteps" and value == 0) or str(value) == str(_number(facts, place)):
            continue  # as good a number as any
        with pytest.raises(ConceptFileError, match="damaged") as error:
            LOADERS[kind](path)
        assert len(str(error.value)) < 400, place
        assert "cpu" not in made, place


def _number(facts, place):
    for key in place:
        facts = facts[key]
    return facts


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("contextualizer", ("encoder", "vocabulary"), 2_000_000),
        ("contextualizer", ("shape", "positions"), HUGE),
        ("contextualizer", ("shape", "heads"), 3),
        ("tuning_encoder", ("resolution",), HUGE),
        ("tuning_encoder", ("timesteps", 0), 1000),
        ("tuning_encoder", ("shape", "preset", "grid"), HUGE),
        ("tuning_encoder", ("shape", "preset", "heads"), 3),
    ],
)
def test_numbers_that_no_tensor_shows_are_bounded(tmp_path, bundled, kind, place, value):
    tensors, facts = bundled[kind]
    path = tmp_path / "claims.safetensors"
    save_file(tensors, path, {"contextual_inversion": json.dumps(with_number(facts, place, value))})
    with pytest.raises(ConceptFileError, match="damaged"):
        LOADERS[kind](path)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_bundled_networks_are_what_they_say(tmp_path, bundled, kind):
    tensors, facts = bundled[kind]
    path = tmp_path / "whole.safetensors"
    save_file(tensors, path, {"contextual_inversion": json.dumps(facts)})
    assert LOADERS[kind](path).state_dict().keys() <= tensors.keys()


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("provenance", [["a", "list"], "text", 3, None, {"steps": 1}], ids=str)
def test_any_provenance_is_described(tmp_path, bundled, kind, provenance):
    tensors, facts = bundled[kind]
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, {"contextual_inversion": json.dumps({**facts, "provenance": provenance})})
    assert describe_network(path)["provenance"] == provenance


def test_looking_before_building_imports_nothing_heavy():
    """Filling tensors without memory would: a second and more for everyone who loads a network."""
    code = (
        "import sys\n"
        "from contextual_inversion.core.files.contextualizer import load_contextualizer\n"
        "from contextual_inversion.core.models.tiny.weights import tiny_weights_path\n"
        "load_contextualizer(tiny_weights_path('contextualizer'))\n"
        "assert 'sympy' not in sys.modules, 'sympy'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
