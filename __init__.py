"""Contextual Inversion: teach a Stable Diffusion model a new word and keep the rest of the prompt working.

Importing this package imports nothing else: ComfyUI calls `comfy_entrypoint` when it wants the nodes, and every other
program imports the part it needs (`contextual_inversion.core...`).
"""

from typing import Any

__version__ = "0.1.0"

# ComfyUI serves every .js file in here and the help pages in its docs/ folder.
WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "__version__", "comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    """The ComfyExtension that lists this pack's nodes."""
    from .nodes import extension

    return extension()
