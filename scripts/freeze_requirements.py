"""Writes requirements-dev.txt: the exact versions, in this environment, of everything the pack's extras need.

`make lock` runs it after an upgrade. torch, torchvision and torchaudio stay out: they are one choice of build for each
machine (CPU, CUDA, ROCm) and the Makefile pins their versions. What only ComfyUI needs stays out too: its own
requirements.txt says that.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACK = "contextual-inversion"
ROOTS = (Requirement(f"{PACK}[dev]"),)
LEFT_OUT = re.compile(r"^(torch|torchvision|torchaudio|triton|nvidia-.*|contextual-inversion|pip)$")
HEADER = """\
# Exact versions for development, CPython 3.11 or newer; written by `make lock`, not by hand.
# Complete, so it is installed with --no-deps, after torch, torchvision and torchaudio (see the Makefile).
"""


def closure(roots: tuple[Requirement, ...]) -> dict[str, str]:
    """Installed name -> version of everything the roots need, extras and environment markers followed."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = list(roots)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"freeze_requirements: {name} is needed but not installed") from None
        found[name] = installed.version
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in installed.requires or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return found


def main() -> int:
    """Writes the file named on the command line."""
    target = Path(sys.argv[1])
    pins = closure(ROOTS)
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items()) if not LEFT_OUT.match(name)]
    target.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{target}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
