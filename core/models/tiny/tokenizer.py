"""The stock CLIP BPE tokenizer, built from whichever copy of the vocabulary is at hand. None is committed."""

from __future__ import annotations

import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

from .config import POSITIONS, VOCABULARY

BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
MERGES = VOCABULARY - 512 - 2


def merges_of_open_clip() -> list[tuple[str, str]]:
    """BPE merges from the open_clip_torch package. Raises FileNotFoundError, saying what to install."""
    spec = importlib.util.find_spec("open_clip")
    path = Path(spec.origin).parent / BPE_FILE if spec and spec.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            "no CLIP vocabulary here: install open_clip_torch (the `train` extra), or run in ComfyUI"
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    return [tuple(line.split()) for line in lines]  # type: ignore[misc]


def byte_characters() -> list[str]:
    """The 256 printable characters that stand for bytes in CLIP's and GPT-2's BPE, in vocabulary order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id: bytes, bytes that end a word, merges, then start and end of text (49408 in all)."""
    single = byte_characters()
    tokens = [*single, *(c + "</w>" for c in single), *("".join(m) for m in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


@lru_cache(maxsize=2)
def tiny_tokenizer(folder: str | None = None) -> CLIPTokenizer:
    """CLIP's tokenizer (49408 tokens, 77 positions).

    `folder` names a place holding CLIP's `vocab.json` and `merges.txt`, as ComfyUI's `comfy/sd1_tokenizer` does;
    without it the vocabulary comes from open_clip_torch. Both give identical ids.
    """
    from transformers import CLIPTokenizer

    if folder is None:
        merges = merges_of_open_clip()
        vocab = vocabulary(merges)
    else:
        vocab = json.loads((Path(folder) / "vocab.json").read_text(encoding="utf-8"))
        lines = (Path(folder) / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
        merges = [tuple(line.split()) for line in lines if line.strip()]  # type: ignore[misc]
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=POSITIONS,
    )
