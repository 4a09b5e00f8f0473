"""What the papers report beside what the trials show, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tables import FEWEST, is_clear, table_header, table_row

NOT_YET = "not measured yet"
Parts = Mapping[str, Mapping[str, Any]]
"""The parts of a report of `claims`, by name."""


@dataclass(frozen=True)
class Row:
    """A line of a paper's table: two of its values, and the comparison of a part of `claims` that stands for it."""

    table: str
    what: str
    paper: str
    sign: int
    part: str
    treated: str
    control: str
    measure: str


def _table_1() -> Iterator[Row]:
    for name, key, theirs, sign in (
        ("sim1", "sim1", "0.505 → 0.407", -1),
        ("sim2", "sim2", "0.386 → 0.739", 1),
        # Which of the two the manuscript printed, its code does not say (METHODS.md 2.7).
        ("SKL", "skl", "1.593 → 2.354", 1),
        ("SKL over pixels", "skl_pixels", "1.593 → 2.354", 1),
    ):
        yield Row("MLM 1", f"TI → + MLM: {name}", theirs, sign, "mlm", "mlm", "ti", key)


def _table_2() -> Iterator[Row]:
    figures = {
        "TI": ("ti", ("0.279 → 0.305", 1), ("0.661 → 0.658", -1)),
        "XTI": ("xti", ("0.297 → 0.305", 1), ("0.692 → 0.710", 1)),
        "DB": ("dreambooth-lora", ("0.306 → 0.309", 1), ("0.783 → 0.775", -1)),
        "CD": ("custom-diffusion", ("0.322 → 0.326", 1), ("0.737 → 0.736", -1)),
    }
    for name, (kind, *values) in figures.items():
        for (metric, measure), (theirs, sign) in zip(STAND_INS.items(), values, strict=True):
            treated = "mlm" if kind == "ti" else f"{kind}_mlm"
            yield Row("MLM 2", f"{name} → + MLM: {metric}", theirs, sign, "pipelines", treated, kind, measure)


def _table_3() -> Iterator[Row]:
    figures = {
        "1e-05": (("0.279 → 0.292", 1), ("0.657 → 0.659", 1)),
        "0.0001": (("0.279 → 0.305", 1), ("0.657 → 0.658", 1)),
        "0.0005": (("0.279 → 0.311", 1), ("0.657 → 0.654", -1)),
    }
    for weight, values in figures.items():
        for (metric, measure), (theirs, sign) in zip(STAND_INS.items(), values, strict=True):
            what = f"TI → + MLM, lambda {float(weight):g}: {metric}"
            yield Row("MLM 3", what, theirs, sign, "mlm-sweep", f"mlm_{weight}_0.15", "ti", measure)


def _table_4() -> Iterator[Row]:
    for rho, theirs in (("0.15", "0.279 → 0.305"), ("0.5", "0.279 → 0.304"), ("0.9", "0.279 → 0.299")):
        what = f"TI → + MLM, rho {rho}: CLIP-T"
        yield Row("MLM 4", what, theirs, 1, "mlm-sweep", f"mlm_0.06_{rho}", "ti", "fidelity")


def _core() -> Iterator[Row]:
    for metric, measure in STAND_INS.items():
        yield Row("CoRe", f"TI → CoRe: {metric}", "better", 1, "pipelines", "core", "ti", measure)
    pieces = {"no_embedding": "L_emb", "no_attention": "L_attn", "no_window": "rescaling"}
    for name, piece in pieces.items():
        for metric, measure in STAND_INS.items():
            what = f"CoRe → without {piece}: {metric}"
            yield Row("CoRe, ablation", what, "part of the method", 0, "ablation", name, "core", measure)


def _pipelines() -> Iterator[Row]:
    others = {"ti": "TI", "dreambooth-lora": "DreamBooth-LoRA"}
    ways = {
        "core_lora": "CoRe, both stages",
        "core_lora_again": "CoRe, both stages, searched again",
        "word-lora_core": "CoRe, word and LoRA together",
    }
    longer = {"core_lora": "CoRe, both stages", "attention_lora": "CoRe without L_emb, both stages"}
    tables = (("CoRe, equal seconds", "leaders", ways, ""), ("CoRe, twice the seconds", "longer", longer, "_x2"))
    for table, part, treatments, end in tables:
        for treated, way in treatments.items():
            for control, label in others.items():
                for metric, measure in (*STAND_INS.items(), ("recognised and obeyed", "composed")):
                    what = f"{label} → {way}: {metric}"
                    yield Row(table, what, "better", 1, part, f"{treated}{end}", f"{control}{end}", measure)
    what = "CoRe, LoRA → LoRA by timestep: recognised and obeyed"
    yield Row("T-LoRA", what, "better balance", 1, "pipelines", "core_tlora", "core_lora", "composed")
    yield Row("DTI", "TI → DTI: CLIP-T", "better", 1, "pipelines", "dti", "ti", "fidelity")


STAND_INS = {"CLIP-T": "fidelity", "DINO-FG": "similarity"}
"""What is exact on ConceptWorld in place of the papers' metrics."""
ROWS = (*_table_1(), *_table_2(), *_table_3(), *_table_4(), *_core(), *_pipelines())


def reports_in(folder: Path) -> list[Path]:
    """The JSON files in a folder of results."""
    return sorted(folder.glob("*.json"))


def gathered(folder: Path, report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of all whole reports in `folder`, those of `report` in place of older ones, each with commit and
    model."""
    parts: dict[str, dict[str, Any]] = {}
    earlier = [json.loads(file.read_text(encoding="utf-8")) for file in reports_in(folder)]
    for one in (*earlier, report):
        for name, part in one.get("parts", {}).items() if one.get("complete", True) else ():
            parts[name] = {**part, "commit": one.get("commit"), "model": one.get("model")}
    return parts


def papers_table(parts: Parts) -> list[str]:
    """Every row with what we see: means, paired difference with its interval, and whether its sign is the paper's."""
    lines = table_header("table", "what", "paper says", "we see", "pairs", "")
    for row in ROWS:
        seen = _comparison(parts, row)
        cells = [row.table, row.what, row.paper, *((NOT_YET, "", "") if seen is None else _seen(row, seen))]
        lines.append(table_row(*cells))
    return [*lines, *provenance(parts, sorted({row.part for row in ROWS}))]


def provenance(parts: Parts, names: Sequence[str]) -> list[str]:
    """A line that says at which commits and on which model the figures of these parts were made."""
    made = [(name, _commits(parts[name]), parts[name].get("model")) for name in names if name in parts]
    known = [f"{name} at commit {commits or 'unknown'}, model {model or 'unknown'}" for name, commits, model in made]
    return ["", f"Made by: {'; '.join(known)}."] if known else []


def _commits(part: Mapping[str, Any]) -> str:
    """Those of its trials, which may be of several runs; the report's own where they do not say."""
    of_trials = dict.fromkeys(trial.get("commit") for trial in part.get("trials", []))
    return " and ".join(filter(None, of_trials)) or part.get("commit") or ""


def _comparison(parts: Parts, row: Row) -> Mapping[str, Any] | None:
    wanted = (row.treated, row.control, row.measure)
    for found in parts.get(row.part, {}).get("comparisons", []):
        if (found["method"], found["control"], found["measure"]) == wanted:
            return found
    return None


def _seen(row: Row, seen: Mapping[str, Any]) -> tuple[str, str, str]:
    clear = is_clear(seen)
    verdict = "not clear" if not clear else "" if row.sign == 0 else "same way"
    if clear and row.sign * seen["difference"] < 0:
        verdict = "**other way**"
    if seen["pairs"] < FEWEST:
        verdict = "few pairs"
    means = f"{seen['control_mean']:.3f} → {seen['mean']:.3f}"
    gain = f"{seen['difference']:+.3f}, {seen['low']:+.3f} to {seen['high']:+.3f}"
    return f"{means} ({gain})", str(seen["pairs"]), verdict
