"""`contextual-inversion learned-attention`: do words learned by TI, CoRe and MLM look at the right place?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tables import table_header, table_row

if TYPE_CHECKING:
    import torch

    from ...core.concept import Concept
    from ...core.models.diffusers_adapter import DiffusersModel
    from .trials import Arm

CONCEPTS = ("castle", "racer", "planet", "winged-heart", "horned-cat")
CLASS_WORD, CONTROL = "class-word", "ti"


@dataclass(frozen=True)
class Cell:
    """One word, and what `over_chance` says of each of its scenes, (N, 4), in the shown layers and in all."""

    concept: str
    method: str
    seed: int
    shown: torch.Tensor
    every: torch.Tensor
    area: float


def main(
    concepts: tuple[str, ...] = CONCEPTS,
    n: int = 20,
    seeds: int = 1,
    folder: Path = Path("out/attention"),
    steps: int | None = None,
) -> dict[str, Any]:
    """Learn words with plain textual inversion, CoRe and MLM; measure where they look, and where the class word does.

    Every word is asked about the same N rendered scenes of its concept, whose masks are exact. Words are kept in
    FOLDER, under the model's fingerprint, and not learned again.

    Args:
        concepts: Held-out concepts.
        n: Scenes of each.
        seeds: Seeds 1..N of pictures and training.
        folder: Where the learned words are kept.
        steps: Training steps, if not the recipe's own.
    """

    from ...core.world import concepts as world
    from .trials import core_inversion, demo_model, mlm_inversion, plain_inversion

    unknown = [name for name in concepts if name not in world.CONCEPTS]
    if unknown or not concepts or seeds < 1:
        raise ValueError(f"concepts are {', '.join(world.CONCEPTS)}; at least one, and one seed. Unknown: {unknown}")
    model = demo_model()
    changes = {} if steps is None else {"steps": steps}
    arms = [build(model, **changes) for build in (plain_inversion, core_inversion, mlm_inversion)]
    cells = []
    for seed in range(1, seeds + 1):
        for index, name in enumerate(concepts):
            for arm in (None, *arms):
                cells.append(measured(model, arm, name, seed, n, 1000 * seed + index, folder / model.fingerprint))
                print(
                    f"{cells[-1].concept:<14}{cells[-1].method:<12}{float(cells[-1].shown[:, 1].mean()):.2f}",
                    flush=True,
                )
    report = compared(cells)
    print("\n".join(table(report)))
    return {**report, "concepts": list(concepts), "scenes_per_word": n, "seeds": seeds}


def measured(
    model: DiffusersModel, arm: Arm | None, name: str, seed: int, scenes: int, scene_seed: int, folder: Path
) -> Cell:
    """A learned word in its scenes; the class word where there is no arm."""

    from ...core.inspection.world.attention_report import scene_shares

    vectors = None if arm is None else kept_word(folder, model, arm, name, seed).vectors
    shares = scene_shares(model, scenes, vectors, concept=name, seed=scene_seed)
    label = CLASS_WORD if arm is None else arm.name
    return Cell(name, label, seed, shares.shown, shares.every, float(shares.area.mean()))


def kept_word(folder: Path, model: DiffusersModel, arm: Arm, name: str, seed: int) -> Concept:
    """The word from `folder`, or learned now and kept there, so that a long comparison can be resumed."""

    from ...core.files import load_concept, save_embedding
    from ...core.world.render import concept_images
    from .trials import PICTURES, arm_key, learn

    key = f"{arm_key(arm)}-{name}-{seed}"
    if not (folder / f"{key}.safetensors").exists():
        pictures, _, class_word = concept_images(name, PICTURES, seed=seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_embedding(learn(model, arm, name, class_word, pictures, seed).renamed(key), folder)
    widths = {encoder: one.width for encoder, one in model.text_encoders.items()}
    return load_concept(folder / f"{key}.safetensors", widths=widths)


def compared(cells: Sequence[Cell]) -> dict[str, Any]:
    """Figures of every word, of every method over all its scenes, and differences from plain textual inversion.

    Intervals draw concepts first and scenes within them; a difference is that of the same scene.
    """

    import torch

    from ...core.inspection.world.attention_report import interval, summary

    labels = list(dict.fromkeys(cell.method for cell in cells))
    scenes = {label: [cell for cell in cells if cell.method == label] for label in labels}
    groups = [cell.concept for cell in scenes[CONTROL] for _ in cell.shown]

    def pooled(label: str, layers: str) -> torch.Tensor:
        return torch.cat([getattr(cell, layers) for cell in scenes[label]])

    against = {}
    for label in labels:
        shown = pooled(label, "shown") - pooled(CONTROL, "shown")
        against[label] = {
            measure: {"difference": float(shown[:, at].mean()), "interval": interval(shown[:, at], groups)}
            for measure, at in (("subject_over_chance", 1), ("background_over_chance", 3))
        }
    return {
        "methods": {
            label: {
                **summary(pooled(label, "shown"), groups),
                "all_layers": summary(pooled(label, "every"), groups),
                "scenes": len(groups),
            }
            for label in labels
        },
        "against_ti": {label: found for label, found in against.items() if label != CONTROL},
        "words": [
            {
                **{key: value for key, value in asdict(cell).items() if key not in ("shown", "every")},
                **summary(cell.shown),
                "all_layers": summary(cell.every),
            }
            for cell in cells
        ],
    }


def table(report: dict[str, Any]) -> list[str]:
    """Markdown: every word, every method, and the differences."""
    header = [
        "subject inside",
        "over chance (16 x 16)",
        "over chance (all layers)",
        "background outside",
        "over chance",
    ]
    lines = table_header("concept", "word", *header)
    for word in report["words"]:
        lines.append(table_row(word["concept"], word["method"], *_figures(word)))
    lines += ["", *table_header("word", *header)]
    lines += [table_row(label, *_figures(found, intervals=True)) for label, found in report["methods"].items()]
    lines += ["", *table_header("against plain TI", "subject over chance", "background over chance")]
    for label, found in report["against_ti"].items():
        cells = (_with_interval(one["difference"], one["interval"], "+.2f") for one in found.values())
        lines.append(table_row(label, *cells))
    return lines


def _figures(found: dict[str, Any], intervals: bool = False) -> list[str]:
    def ratio(entry: dict[str, Any], key: str) -> str:
        return _with_interval(entry[key], entry[f"{key}_interval"] if intervals else None)

    return [
        f"{found['subject_inside']:.3f}",
        ratio(found, "subject_over_chance"),
        ratio(found["all_layers"], "subject_over_chance"),
        f"{found['background_outside']:.3f}",
        ratio(found, "background_over_chance"),
    ]


def _with_interval(value: float, ends: Sequence[float] | None, form: str = ".2f") -> str:
    return f"{value:{form}}" if ends is None else f"{value:{form}} ({ends[0]:{form}} to {ends[1]:{form}})"
