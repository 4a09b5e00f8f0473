"""Load Demo Model gives the candidate where the variable says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from contextual_inversion.core.form import CANDIDATE, VARIABLE

CHILD = Path(__file__).with_name("candidate_child.py")


def test_the_candidate_is_the_same_in_both_programs(comfyui: Any) -> None:
    call = [sys.executable, "-m", "pytest", "-q", str(CHILD)]
    environment = {**os.environ, VARIABLE: CANDIDATE, "COMFYUI_PATH": str(comfyui.path)}
    ran = subprocess.run(call, cwd=CHILD.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "3 passed" in ran.stdout
