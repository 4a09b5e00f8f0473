"""The bundled tiny Stable Diffusion: `load_tiny()` gives its modules, `config` its shape in plain numbers."""

from __future__ import annotations

from .config import PARTS
from .contextualizer import load_contextualizer
from .load import TinyStableDiffusion, load_tiny
from .tokenizer import tiny_tokenizer
from .weights import tiny_weights_path

__all__ = ["PARTS", "TinyStableDiffusion", "load_contextualizer", "load_tiny", "tiny_tokenizer", "tiny_weights_path"]
