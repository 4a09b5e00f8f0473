"""Installs what the found ComfyUI needs into this environment, once per content of its requirements.txt.

Left out: torch, torchvision and torchaudio (the environment has its own), and the template gallery (hundreds of
megabytes of pictures that nothing here opens). Without a ComfyUI it says so and does nothing: the tests that need one
are then skipped.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from find_comfyui import find_comfyui

LEFT_OUT = re.compile(r"^(torch|torchvision|torchaudio|comfyui-workflow-templates)\b(?!-)", re.IGNORECASE)
STAMP = Path(sys.prefix) / "stamp-comfyui"


def wanted(requirements: str) -> list[str]:
    """The lines of ComfyUI's requirements.txt to install."""
    lines = (line.partition("#")[0].strip() for line in requirements.splitlines())
    return [line for line in lines if line and not LEFT_OUT.match(line)]


def main() -> int:
    """Installs, then mends torchvision and torchaudio where their CUDA libraries are missing."""
    comfyui = find_comfyui()
    if comfyui is None:
        print("No ComfyUI (COMFYUI_PATH, two folders above the pack, ~/comfy/ComfyUI): its tests will be skipped")
        return 0
    lines = wanted((comfyui / "requirements.txt").read_text(encoding="utf-8"))
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == fingerprint:
        return 0
    print(f"Installing what {comfyui} needs")
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "requirements.txt"
        chosen.write_text("\n".join(lines) + "\n", encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "-r", str(chosen)], check=True
        )
    STAMP.write_text(fingerprint, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
