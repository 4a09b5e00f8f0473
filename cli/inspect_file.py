"""`contextual-inversion inspect FILE`: what is in an embedding, bundle, LoRA or network, and what its word does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..core.files.programs import PROGRAMS
from .words import clip_vocabulary

if TYPE_CHECKING:
    from ..core.inspection.diagnosis.diagnose import Diagnosis


def main(
    file: Annotated[Path, tyro.conf.Positional],
    *,
    model: Literal["tiny"] | Path | None = None,
    against: Path | None = None,
    class_word: str | None = None,
    prompts: Path | None = None,
    images: int = 1,
    steps: int = 25,
    guidance: float = 4.0,
    size: int | None = None,
    seed: int = 0,
    plot: Path | None = None,
    table: Path | None = None,
) -> dict[str, object]:
    """Say what is in an embedding, LoRA or bundle file: its word, vectors, layers and where it came from.

    Of a contextualizer or tuning-encoder: which model it belongs to, its size, and how it was trained.

    With --model also what its word does to a prompt: sim1, sim2 and SKL against its class word and, with --against,
    against another word for the same thing (plain textual inversion, say); its norm and its nearest vocabulary words.

    Args:
        file: A .safetensors file. Pickles (.pt, .bin, .ckpt) are recognised and never opened.
        model: "tiny" (bundled) or the folder of a diffusers pipeline.
        against: Another learned word for the same thing.
        class_word: The ordinary word for it, where the file does not say.
        prompts: A file of lines "a {} in the snow | snow | a picture of the snow"; the last two parts may be left out.
        images: Pictures a prompt to sample for SKL; 0 leaves SKL out.
        steps: Sampling steps.
        guidance: Scale of the classifier-free guidance.
        size: Side of the pictures in pixels; the model's own if not given.
        seed: Of the pictures.
        plot: Where to draw the figures as a PNG.
        table: Where to write them as Markdown.
    """

    from ..core.files import ConceptFileError, describe, describe_network

    alone = {"against": against, "class-word": class_word, "prompts": prompts, "plot": plot, "table": table}
    if model is None and any(value is not None for value in alone.values()):
        named = ", ".join(f"--{name}" for name, value in alone.items() if value is not None)
        raise ValueError(f"{named} says something of a diagnosis, which needs a model: add --model")
    network = describe_network(file)
    if network is not None:
        if model is not None:
            raise ConceptFileError(f"{file.name} is a {network['kind']}: no word is in it for --model to look at")
        show(network_report(network))
        return network
    contents = describe(file)
    show([*report(contents), *program_report(contents)])
    if model is None:
        return contents
    from .diagnose import diagnosis_of
    from .places import require_file

    for target, option in ((plot, "--plot"), (table, "--table")):
        if target is not None:
            require_file(target, option)
    sampling = {"images": images, "steps": steps, "guidance": guidance, "seed": seed}
    found = diagnosis_of(file, model, against, class_word, prompts, size, sampling)
    return {**contents, "diagnosis": write_diagnosis(found, plot, table)}


def show(lines: list[str]) -> None:
    """Print lines of which parts come from a file that nobody vouches for."""

    from ..core.files import printable

    print("\n".join(printable(line) for line in lines))


def write_diagnosis(diagnosis: Diagnosis, plot: Path | None, table: Path | None) -> dict[str, Any]:
    """Print a diagnosis, draw it and write it where asked to; its figures."""

    from PIL import Image

    from ..core.files import printable
    from ..core.files.atomic import atomic_write_verified
    from ..core.inspection.diagnosis.report import markdown
    from ..core.inspection.diagnosis.report import plot as drawn
    from .places import write_picture

    text = markdown(diagnosis)
    print("\n" + printable(text, lines=True))
    if plot is not None:
        write_picture(Image.fromarray(drawn(diagnosis)), plot)
    if table is not None:
        atomic_write_verified(table, text.encode(), if_exists="replace")
    return diagnosis.figures()


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
        lines.append(f"  {key}: {shortened(value if isinstance(value, str) else json.dumps(value))}")
    return lines


def network_report(contents: dict[str, Any]) -> list[str]:
    """The description of a network's file as lines for people."""
    lines = [f"{contents['file']}: {contents['kind']}, {contents['numbers']:,} numbers, {contents['bytes']:,} bytes"]
    for label, key in (("belongs to", "belongs_to"), ("shape", "shape")):
        lines.append(f"  {label}: {json.dumps(contents[key])}")
    told = contents["provenance"] or {}
    if not isinstance(told, dict):  # a header may say anything
        told = {"provenance": told}
    return [*lines, *(f"  {key}: {json.dumps(value)}" for key, value in told.items())]


def program_report(contents: dict[str, Any]) -> list[str]:
    """How the file is used in each program, or why it cannot be, as lines for people."""

    from ..core.files.typed_names import advice

    lines = ["  in other programs, and what is typed there (`export` writes what one of them reads):"]
    for key, found in contents["programs"].items():
        lines.append(f"    {PROGRAMS[key].title}: {found['type'] if found['reads'] else 'no, ' + found['why']}")
    if contents["vectors"]:
        count = max(entry["count"] for entry in contents["vectors"])
        lines += [f"  {line}" for line in advice(contents["file"].rpartition(".")[0], count, clip_vocabulary())]
    return lines


def shortened(text: str) -> str:
    """Its first hundred characters."""
    return text if len(text) <= 100 else text[:97] + "..."


def _lora_report(lora: dict[str, Any]) -> list[str]:
    ranks = ", ".join(map(str, lora["ranks"])) or "unknown"
    types = " ".join(lora["types"])
    head = f"  LoRA        {len(lora['layers'])} layers, rank {ranks}, {types}, {lora['numbers']:,} numbers"
    shown = [f"    {layer}" for layer in lora["layers"][:8]]
    more = len(lora["layers"]) - len(shown)
    return [head, *shown, *([f"    and {more} more"] if more else [])]
