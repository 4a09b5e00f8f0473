"""`contextual-inversion evaluate DATASET`: CLIP-T, CLIP-I, DINO and DINO-FG on the DreamBench protocol."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..core.inspection.evaluation.defaults import CLIP, DINO

if TYPE_CHECKING:
    from ..core.concept import Concept
    from ..core.inspection.evaluation.protocol import Cell
    from ..core.inspection.evaluation.run import CellResult


def main(
    dataset: Annotated[Path, tyro.conf.Positional],
    *,
    generated: Path | None = None,
    concepts: Path | None = None,
    model: Literal["tiny"] | Path = "tiny",
    masks: Path | None = None,
    prompts: Literal["dreambench", "core"] | Path | None = None,
    subjects: Sequence[str] = (),
    clip: str = CLIP,
    dino: str = DINO,
    encoders: Sequence[Path] = (),
    fill: float = 0.0,
    skip_categories: Sequence[str] = (),
    skip_broken: bool = False,
    pictures: int = 8,
    steps: int = 50,
    guidance: float = 7.5,
    eta: float = 1.0,
    size: int | None = None,
    class_word: bool = False,
    seed: int = 0,
    batch: int = 16,
    device: str | None = None,
    out: Path = Path("out/evaluate"),
) -> dict[str, Any]:
    """Measure pictures of learned words on the DreamBench protocol: CLIP-T, CLIP-I, DINO and, with masks, DINO-FG.

    Score the pictures that are in GENERATED, or draw them first with a model and the CONCEPTS. Every prompt's figures
    are kept in OUT, and a run that was stopped goes on where it was. Writes report.md, report.json and a contact sheet
    a subject. docs/evaluation.md has the layout of the folders.

    Args:
        dataset: Folder with classes.txt and one folder of reference pictures a subject.
        generated: Folder of pictures, SUBJECT/PP/*.png with prompt numbers from 00; OUT/pictures if not given.
        concepts: A learned word for one subject, or a folder of SUBJECT.safetensors: draw what GENERATED lacks.
        model: What to draw with: "tiny" (bundled), or a folder of a diffusers pipeline.
        masks: Folder of masks, SUBJECT/references/*.png and SUBJECT/PP/*.png, named like their pictures.
        prompts: Text file of prompts with {}; "dreambench" (25) or "core" (the 20 of CoRe's paper) for built-in ones.
            GENERATED/prompts.txt, else "dreambench", if not given.
        subjects: Only these subjects of the dataset.
        clip: CLIP's folder or name; "bundled" for the tiny model's encoders, "none" to go without.
        dino: DINO's folder or name; "none" to go without.
        encoders: Folders to look for CLIP and DINO in, such as ComfyUI/models/clip_vision.
        fill: Grey value, 0 to 1, around a foreground.
        skip_categories: Prompts that do not count for similarity, such as style outfit (CoRe's protocol).
        skip_broken: Leave out, and name, pictures and masks that are broken, empty or missing, instead of stopping.
        pictures: How many to draw of each prompt.
        steps: Sampling steps.
        guidance: Classifier-free guidance.
        eta: Noise added while sampling: 1 as DDPM, 0 for DDIM.
        size: Side of the drawn pictures in pixels; the model's own if not given.
        class_word: Draw "<word> class" (the MLM paper) rather than the word alone (CoRe).
        seed: Of the drawn pictures.
        batch: Pictures read, or drawn, at once.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        out: Folder for figures, reports and contact sheets.
    """

    from ..core.inspection.evaluation import Evaluator, encoders_on_device, loading
    from ..core.inspection.evaluation.generation import Generation, check_prompts, generate
    from ..core.inspection.evaluation.protocol import PROMPTS, cells_of, read_dataset, read_prompts
    from ..core.inspection.evaluation.run import Sources, evaluate
    from .loading import chosen_device, load_model
    from .places import require_folder

    if batch < 1 or pictures < 1 or not 0 <= fill <= 1:
        raise ValueError(f"--batch and --pictures are at least 1 and --fill 0 to 1, not {batch}, {pictures} and {fill}")
    require_folder(out)
    place = str(chosen_device(device))
    folder = generated or out / "pictures"
    chosen = prompts or (folder / PROMPTS if (folder / PROMPTS).is_file() else "dreambench")
    cells = cells_of(read_dataset(dataset, subjects), read_prompts(chosen) if isinstance(chosen, Path) else chosen)
    check_prompts(cells, folder)
    evaluator = Evaluator(
        None if clip == "none" else loading.load_clip(clip, encoders),
        None if dino == "none" else loading.load_dino(dino, encoders),
        fill,
        batch,
    )  # before hours of drawing
    if concepts is not None:
        words, painter = read_concepts(concepts, cells), load_model(model, place)
        own_size = painter.unet.config.sample_size * painter.latent_factor
        how = Generation(pictures, steps, guidance, eta, size or own_size, class_word, seed, batch)
        for _ in _with_bar(generate(painter, words, cells, folder, how), len(cells) * pictures, "drawn", "picture"):
            pass
    with encoders_on_device(evaluator.encoders, place):
        found = evaluate(cells, Sources(folder, masks, skip_broken), evaluator, out)
        results = list(_with_bar(found, len(cells), "measured", "prompt"))
    return write_reports(results, evaluator.facts(), skip_categories, folder, out)


def read_concepts(path: Path, cells: Sequence[Cell]) -> dict[str, Concept]:
    """The learned word of every subject: one file for a single subject, or SUBJECT.safetensors in a folder.

    Raises ValueError for one file and several subjects, FileNotFoundError that names the files that are missing.
    """
    from ..core.files import load_concept

    names = list(dict.fromkeys(cell.subject.name for cell in cells))
    if path.is_file() and len(names) > 1:
        raise ValueError(f"one concept for {len(names)} subjects: name one with --subjects, or give a folder")
    files = {name: path if path.is_file() else path / f"{name}.safetensors" for name in names}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"no concept at {', '.join(missing)}")
    return {name: load_concept(file) for name, file in files.items()}


def write_reports(
    results: Sequence[CellResult],
    facts: Mapping[str, Any],
    skip_categories: Sequence[str],
    generated: Path,
    out: Path,
) -> dict[str, Any]:
    """report.json, report.md and sheets/SUBJECT.png in `out`; returns what report.json holds."""
    import json

    from ..core.files.atomic import atomic_write_verified
    from ..core.inspection.evaluation.report import markdown_report, summarise
    from ..core.inspection.evaluation.sheets import subject_sheet
    from .main import plain
    from .places import write_picture

    report = summarise(results, facts, skip_categories)
    sheets = []
    for name, group in itertools.groupby(results, key=lambda result: result.cell.subject.name):
        own = list(group)
        if not any(result.pictures for result in own):
            continue
        path = out / "sheets" / f"{name}.png"
        write_picture(subject_sheet(own, generated), path)
        sheets.append(f"sheets/{name}.png")
    text = markdown_report(report, sheets)
    data = json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write_verified(out / "report.json", data.encode(), if_exists="replace")
    atomic_write_verified(out / "report.md", text.encode(), if_exists="replace")
    print(text.split("\n## ")[0])
    print(f"wrote {out / 'report.md'}, report.json and {len(sheets)} contact sheets")
    return report


def _with_bar(items: Iterable[Any], total: int, what: str, unit: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, unit=unit)
