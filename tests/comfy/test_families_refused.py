"""Every model that ComfyUI loads is trained on, or refused with a reason that docs/models.md gives too."""

import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
STABLE_DIFFUSION = {"BaseModel", "SDXL"}


def loaded_by_comfyui():
    """The classes of `model_base` that ComfyUI's descriptions of models make."""
    import comfy.supported_models

    found = set()
    for model in comfy.supported_models.models:
        owner = next(kind for kind in model.__mro__ if "get_model" in vars(kind))
        found |= set(re.findall(r"model_base\.(\w+)\(", inspect.getsource(vars(owner)["get_model"])))
    return found


def test_nothing_that_comfyui_loads_is_passed_over(comfyui):
    from contextual_inversion.nodes.comfy.families.facts import FAMILIES
    from contextual_inversion.nodes.comfy.families.refused import REFUSED

    found = loaded_by_comfyui()
    assert len(found) > 60
    assert found == STABLE_DIFFUSION | set(FAMILIES) | set(REFUSED)
    assert not set(FAMILIES) & set(REFUSED)


def test_the_documentation_says_why(comfyui):
    from contextual_inversion.nodes.comfy.families.refused import REFUSED

    reasons = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(name)
    table = "\n".join(f"| {reason} | {', '.join(names)} |" for reason, names in reasons.items())
    assert table in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["HunyuanVideo", "StableAudio1", "Hunyuan3Dv2", "HunyuanImage21Refiner", "Lens"])
def test_a_refusal_names_the_model_and_the_reason(comfyui, name):
    from contextual_inversion.nodes.comfy.adapting import adapted
    from contextual_inversion.nodes.comfy.families.refused import REFUSED

    base = type(name, (), {"diffusion_model": None})()
    with pytest.raises(ValueError, match=f"{name} {REFUSED[name]}"):
        adapted(SimpleNamespace(model=base), None, None)


def test_a_wan_that_is_given_a_picture_is_refused(comfyui):
    from random_families import build

    from contextual_inversion.nodes.comfy.adapting import adapted

    sockets = build("wan", in_dim=36)
    with pytest.raises(ValueError, match="makes videos of a picture"):
        adapted(sockets.model, sockets.clip, sockets.vae)
