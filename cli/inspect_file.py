"""`contextual-inversion inspect FILE`: what an embedding, bundle or LoRA file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..core.files import describe


def main(file: Annotated[Path, tyro.conf.Positional]) -> dict[str, object]:
    """Say what is in an embedding, LoRA or bundle file: its word, vectors, layers and where it came from.

    Args:
        file: A .safetensors file. Pickles (.pt, .bin, .ckpt) are recognised and never opened.
    """
    contents = describe(file)
    print("\n".join(report(contents)))
    return contents


def report(contents: dict[str, Any]) -> list[str]:
    """The description of a file as lines for people."""
    lines = [f"{contents['file']}: {contents['kind']}, {contents['bytes']:,} bytes"]
    if contents["vectors"]:
        lines.append(f"  word        {contents['name']}")
    for label, key in (("class word", "class_word"), ("hard token", "hard_token")):
        if contents[key]:
            lines.append(f"  {label}  {contents[key]}")
    for entry in contents["vectors"]:
        norms = ", ".join(f"{norm:.4g}" for norm in entry["norms"])
        family = f" ({entry['family']})" if entry["family"] else ""
        count = "1 vector" if entry["count"] == 1 else f"{entry['count']} vectors"
        lines.append(
            f"  {entry['encoder']:<10}  {count} of width {entry['width']}{family}, {entry['type']}, norm {norms}"
        )
    for encoder, shape in contents["layer_vectors"].items():
        lines.append(f"  {encoder:<10}  per-layer vectors {' x '.join(map(str, shape))} (layers x vectors x width)")
    if contents["lora"]:
        lines += _lora_report(contents["lora"])
    for key, value in {**contents["provenance"], **contents["other_metadata"]}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"  {key}: {text if len(text) <= 100 else text[:97] + '...'}")
    return lines


def _lora_report(lora: dict[str, Any]) -> list[str]:
    ranks = ", ".join(map(str, lora["ranks"])) or "unknown"
    types = " ".join(lora["types"])
    head = f"  LoRA        {len(lora['layers'])} layers, rank {ranks}, {types}, {lora['numbers']:,} numbers"
    shown = [f"    {layer}" for layer in lora["layers"][:8]]
    more = len(lora["layers"]) - len(shown)
    return [head, *shown, *([f"    and {more} more"] if more else [])]
