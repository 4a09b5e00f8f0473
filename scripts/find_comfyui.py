"""Where ComfyUI is: COMFYUI_PATH, two folders above the pack, or ~/comfy/ComfyUI.

Prints the folder, or nothing and exits with 1.
"""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def find_comfyui() -> Path | None:
    """The first of those folders that is a ComfyUI; COMFYUI_PATH, where set, is the only one looked at."""
    named = os.environ.get("COMFYUI_PATH")
    above = Path(os.path.abspath(__file__)).parent.parent.parent.parent
    places = [Path(named)] if named else [above, Path.home() / "comfy" / "ComfyUI"]
    return next((place.resolve() for place in places if (place / "comfy" / "sd.py").is_file()), None)


def main() -> int:
    """Prints the folder."""
    found = find_comfyui()
    if found is not None:
        print(found)
    return 0 if found is not None else 1


if __name__ == "__main__":
    sys.exit(main())
