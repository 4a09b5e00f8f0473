"""`contextual-inversion attention-report`: do words look at the right place of a picture?"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def main(n: int = 100, concept: str | None = None, file: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Measure how much of a word's attention lies where its thing is, over N rendered scenes with exact masks.

    Args:
        n: Scenes.
        concept: A held-out concept ("goblet") as the subject of all scenes; ordinary subjects if not given.
        file: A learned word for that concept (.safetensors), with all that was learned beside it; if not given, its
            class word.
        seed: Of the scenes and of the noise.
    """
    from ...core.files import load_concept
    from ...core.inspection.world.attention_report import attention_report
    from ...core.models.diffusers_adapter import DiffusersModel
    from ...core.models.tiny import load_tiny
    from ...core.models.words import layer_vectors_of
    from ...core.world.concepts import CONCEPTS

    if concept is not None and concept not in CONCEPTS:
        raise ValueError(f"there is no concept {concept!r}; choose one of {', '.join(CONCEPTS)}")
    model = DiffusersModel.from_tiny(load_tiny())
    widths = {name: encoder.width for name, encoder in model.text_encoders.items()}
    learned: dict[str, Any] = {}
    if file is not None:
        word = load_concept(file, widths=widths)
        layer_vectors_of(word, model)  # refuses those of another model
        learned = {"vectors": word.vectors, "layers": word.layer_vectors, "lora": word.lora}
    report = attention_report(model, n, concept=concept, seed=seed, **learned)
    print(f"{'':<42}{'subject inside':>16}{'over chance':>13}{'background outside':>20}{'over chance':>13}")
    rows = [("layers of 16 x 16", report), ("all layers", report["all_layers"])]
    rows += [(entry["layer"].partition(" (")[0], entry) for entry in report["layers"]]
    rows += [(f"timestep {entry['timestep']}", entry) for entry in report["timesteps"]]
    for label, row in rows:
        subject = f"{row['subject_inside']:>16.3f}{row['subject_over_chance']:>13.2f}"
        print(f"{label:<42}{subject}{row['background_outside']:>20.3f}{row['background_over_chance']:>13.2f}")
    return report
