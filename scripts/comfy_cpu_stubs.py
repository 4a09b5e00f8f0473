"""Makes CUDA builds of torchvision and torchaudio importable beside a CPU-only PyTorch, in this environment only.

ComfyUI imports both at start-up, but uses none of their compiled operators for images. Some registries offer only the
CUDA builds of the two; beside a CPU build of PyTorch those fail to load their libraries, and with them the import:

- torchvision registers fake kernels for `nms`, whose definition was in the library that did not load. The definition
  alone, without a kernel, is enough for the import.
- torchaudio insists on a library it finds. Without the file it runs on its Python code.

Does nothing where both packages import as they are. Run it with the environment's own Python.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

TORCHVISION_STUB = """

# Added by contextual-inversion's scripts/comfy_cpu_stubs.py: see there.
if not _has_ops():
    _cpu_stub = torch.library.Library("torchvision", "DEF")
    _cpu_stub.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _cpu_stub.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> int:
    """Mends what does not import; 1 if something still does not."""
    if not imports("torchvision"):
        define_operators_of_torchvision()
    if not imports("torchaudio"):
        set_libraries_of_torchaudio_aside()
    broken = [package for package in ("torchvision", "torchaudio") if not imports(package)]
    for package in broken:
        print(f"comfy_cpu_stubs: {package} still does not import; see: {sys.executable} -c 'import {package}'")
    return 1 if broken else 0


def imports(package: str) -> bool:
    """Whether a fresh interpreter can import the package."""
    return subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def folder_of(package: str) -> Path:
    """The installed package's folder, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"comfy_cpu_stubs: {package} is not installed in {sys.prefix}")
    return Path(spec.origin).parent


def define_operators_of_torchvision() -> None:
    """Appends the operator definitions to torchvision's extension loader, once."""
    loader = folder_of("torchvision") / "extension.py"
    source = loader.read_text(encoding="utf-8")
    if TORCHVISION_STUB not in source:
        loader.write_text(source + TORCHVISION_STUB, encoding="utf-8")
        print("comfy_cpu_stubs: torchvision's CUDA library cannot load here; defined its operators without kernels")


def set_libraries_of_torchaudio_aside() -> None:
    """Renames torchaudio's compiled libraries, so that it looks as if it had been built without them."""
    for library in sorted((folder_of("torchaudio") / "lib").glob("*.so")):
        library.rename(library.with_suffix(".so.needs-cuda"))
        print(f"comfy_cpu_stubs: set {library.name} aside, it needs CUDA libraries that are not here")


if __name__ == "__main__":
    sys.exit(main())
