"""Settings of every test: a hypothesis profile that fits a small machine, one torch thread, and where ComfyUI is."""

import os
import runpy
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(Path(__file__).parent / "laws"))  # pytest's importlib mode leaves a test's folders out of the path

# No deadline: nothing here asserts a time. No example database: nothing is written into the checkout.
settings.register_profile(
    "suite",
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("thorough", parent=settings.get_profile("suite"), max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_configure(config: pytest.Config) -> None:
    # Tiny tensors on a few cores: more threads cost more than they bring, and two pytest workers would fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # The models are bundled or built in the test; nothing may be looked up on a hub.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """Where ComfyUI is; skips the test, saying where was looked, if there is none."""
    found = runpy.run_path(str(REPOSITORY / "scripts" / "find_comfyui.py"))["find_comfyui"]()
    if found is None:
        pytest.skip("no ComfyUI at COMFYUI_PATH, two folders above the pack, or ~/comfy/ComfyUI")
    return found
