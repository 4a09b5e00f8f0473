"""What several files of this folder share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # pytest's importlib mode leaves a test's folders out of the path
