"""Makes `small_pipelines` importable: pytest's importlib mode leaves a test's own folder out of the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
