"""Makes `small_pipelines` importable: pytest's importlib mode leaves a test's own folder out of the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # before that of the ComfyUI tests, which have files of like names
