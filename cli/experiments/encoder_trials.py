"""`contextual-inversion encoder-trials`: one picture, one word, on held-out concepts: predicted, tuned, or inverted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .claims import DEVELOPMENT, MEASURES, commit, compare, run_cells
from .tables import require_marks, rewrite_tables, table_header, table_row

if TYPE_CHECKING:
    from ...core.networks.tuning_encoder import Shape, TuningEncoder
    from .encoder_ways import Way
    from .trials import Comparison

SHOWN = {
    **{key: MEASURES[key] for key in ("fidelity", "composed", "recognised", "concept_score", "similarity", "leak")},
    "nearness": "cosine with the nearest word",
    "seconds": "seconds",
}


def offered() -> dict[str, Comparison]:
    """By the name to give on the command line."""

    from .encoder_ways import RANK_PAIRS, RANK_WAYS, WAY_PAIRS, WAYS
    from .trials import Comparison

    return {
        "ways": Comparison("encoder-ways", WAYS, WAY_PAIRS),
        "ranks": Comparison("encoder-ranks", RANK_WAYS, RANK_PAIRS),
    }


def main(
    *,
    parts: tuple[str, ...] = ("ways",),
    encoder: Path | None = None,
    folder: Path = Path("out/encoder_trials"),
    concepts: tuple[str, ...] = (),
    seeds: int = 3,
    prompts: int = 0,
    workers: int = 1,
    markdown: Path | None = None,
) -> dict[str, Any]:
    """Make a word of one picture of every held-out concept every way, judge what it draws, and compare pair by pair.

    Seeds are paired: every way sees the same picture and starts its pictures from the same noise. A cell that is done
    is kept in FOLDER, under the fingerprints of model and encoder, and not done again.

    Args:
        parts: "ways": predicted, tuned and plain TI; "ranks": the LoRA's rank, and whole weights against it.
        encoder: A tuning-encoder of the bundled model; the bundled one if not given.
        folder: Where each cell's figures are kept.
        concepts: Held-out concepts; if none are named, all that were not used for development.
        seeds: Seeds 1..N of each concept.
        prompts: So many of the evaluation prompts, evenly of all kinds; 0: all.
        workers: Processes that work at the same time, one thread each.
        markdown: A document in which the tables of each part, between its two marks, are written anew.
    """

    from tqdm import tqdm

    from ...core.world import concepts as world
    from .encoder_ways import RANK_WAYS, EncoderTrial, loaded
    from .trials import demo_model

    known = offered()
    unknown = [name for name in parts if name not in known] + [name for name in concepts if name not in world.CONCEPTS]
    if unknown or not parts or seeds < 1 or prompts < 0 or workers < 1:
        raise ValueError(
            f"parts are {', '.join(known)}, concepts {', '.join(world.CONCEPTS)}; at least one seed and one worker. "
            f"Unknown: {', '.join(unknown) or 'none'}"
        )
    require_marks(() if markdown is None else (markdown,), [known[name].name for name in parts])
    _, network = loaded(encoder)
    model = demo_model().fingerprint
    folder = folder / f"{model}-{digest(network)}"
    names = concepts or tuple(name for name in world.CONCEPTS if name not in DEVELOPMENT)
    trial = EncoderTrial(encoder, prompts)
    chosen = [known[name] for name in parts]
    cells = {
        f"{way.key(prompts)}-{name}-{seed}": (trial, way, name, seed)
        for seed in range(1, seeds + 1)
        for name in names
        for part in chosen
        for way in part.arms
    }
    done = dict(tqdm(run_cells(cells, folder, workers), total=len(cells), desc="trials", unit="trial"))
    facts = {"commit": commit(), "model": model, "encoder": network.provenance, "prompts": prompts}
    report: dict[str, Any] = {**facts, "parts": {}}
    for part in chosen:
        trials = [
            {**done[f"{way.key(prompts)}-{name}-{seed}"], "method": way.name}
            for way in part.arms
            for name in names
            for seed in range(1, seeds + 1)
        ]
        found = {"trials": trials, "comparisons": compare(trials, part.pairs, SHOWN)}
        lines = as_markdown(part, found)
        if part.arms is RANK_WAYS:
            found["sizes"] = sizes(network.shape)
            lines += ["", *size_table(found["sizes"])]
        report["parts"][part.name] = found
        print("\n".join(lines))
        if markdown is not None:
            rewrite_tables(markdown, part.name, lines)
    return report


def as_markdown(part: Comparison, found: Mapping[str, Any]) -> list[str]:
    """What each way reached, every comparison, and what words the predictions are nearest to, as tables."""
    trials, rows = found["trials"], found["comparisons"]
    labels = {way.name: way.label for way in part.arms}
    lines = table_header("mean", *SHOWN.values())
    for name, label in labels.items():
        own = [trial for trial in trials if trial["method"] == name]
        lines.append(table_row(label, *(f"{_mean([trial[key] for trial in own]):.3f}" for key in SHOWN)))
    shown = [key for key in SHOWN if key != "seconds" and any(row["measure"] == key for row in rows)]
    if shown:
        pairs = rows[0]["pairs"]
        title = f"difference over {pairs} pairs (95 % interval)"
        lines += ["", *table_header(title, *(SHOWN[key] for key in shown))]
        for pair in part.pairs:
            own = {row["measure"]: row for row in rows if (row["method"], row["control"]) == pair}
            gains = (f"{r['difference']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f})" for r in map(own.get, shown) if r)
            lines.append(table_row(f"{labels[pair[0]]} against {labels[pair[1]]}", *gains))
    words = [way for way in part.arms if way.rank is None and not way.dual]
    return [*lines, "", *nearest_words(words, trials)]


def nearest_words(ways: Sequence[Way], trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The words nearest to what was learned, seed by seed, a column for each concept."""
    names = {trial["concept"]: trial["class_word"] for trial in trials}
    lines = table_header("nearest words", *(f"{name} (a {word})" for name, word in names.items()))
    for way in ways:
        own = [trial for trial in trials if trial["method"] == way.name]
        said = (", ".join(trial["hard_token"] for trial in own if trial["concept"] == name) for name in names)
        lines.append(table_row(way.label, *said))
    return lines


def sizes(shape: Shape) -> list[dict[str, int]]:
    """By rank, how many numbers the LoRA and the encoder that predicts it have, here and at Stable Diffusion's size."""

    from ..bench.tuning_encoder import sd15_shape
    from .encoder_ways import RANKS

    found = []
    for rank in RANKS:
        row = {"rank": rank}
        for name, one in (("", shape), ("_sd15", sd15_shape())):
            row[f"lora{name}"] = sum(rank * (d_in + d_out) for d_in, d_out in one.targets.values())
            row[f"encoder{name}"] = encoder_numbers(one, rank)
            row[f"whole_weights{name}"] = sum(d_in * d_out for d_in, d_out in one.targets.values())
        found.append(row)
    return found


def encoder_numbers(shape: Shape, rank: int) -> int:
    """How many weights a tuning-encoder of that rank has; none of them is made."""

    import torch

    from ...core.networks.tuning_encoder import Identity, TuningEncoder

    with torch.device("meta"):
        return TuningEncoder(Identity("", "", {}, ""), replace(shape, preset=replace(shape.preset, rank=rank))).numbers


def size_table(rows: Sequence[Mapping[str, int]]) -> list[str]:
    """`sizes` as a Markdown table."""
    names = {
        "lora": "LoRA",
        "encoder": "tuning-encoder",
        "lora_sd15": "LoRA, SD 1.5",
        "encoder_sd15": "encoder, SD 1.5",
    }
    lines = table_header("numbers at rank", *names.values())
    lines += [table_row(str(row["rank"]), *(f"{row[key]:,}" for key in names)) for row in rows]
    whole = rows[0]
    return [
        *lines,
        table_row("whole weights", f"{whole['whole_weights']:,}", "", f"{whole['whole_weights_sd15']:,}", ""),
    ]


def digest(network: TuningEncoder) -> str:
    """Tells encoders with different weights, negatives or timesteps apart."""

    from ...core.models.protocol import fingerprint

    negatives = {f"negatives {name}": value for name, value in network.negatives.items()}
    return fingerprint({**network.state_dict(), **negatives}, timesteps=network.timesteps, seed=network.seed)


def _mean(values: Sequence[float]) -> float:
    """Cells in which a measure is not asked for do not count."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
