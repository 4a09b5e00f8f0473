"""The diagnosis behind `contextual-inversion inspect FILE --model ...`; needs a model, which a bare look does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import load_concept
from ..core.inspection.diagnosis.diagnose import Diagnosis, diagnose
from ..core.inspection.diagnosis.probes import parse_probes, place_probes
from ..core.inspection.world.world_evaluation import context_probes
from ..core.models.families import drawn_resolution
from ..core.models.protocol import ImageSize
from ..core.prompts.parse import text_of
from .loading import load_model


def diagnosis_of(
    file: Path,
    model: str | Path,
    against: Path | None,
    class_word: str | None,
    prompts: Path | None,
    side: int | None,
    sampling: Mapping[str, Any],
) -> Diagnosis:
    """Diagnose the word in `file`, with the prompts of a file or those that suit the model."""
    tiny = model == "tiny"
    subject = load_model(model, None)
    widths = {name: encoder.width for name, encoder in subject.text_encoders.items()}
    side = side or drawn_resolution(subject)
    if prompts is not None:
        probes = parse_probes(text_of(prompts))
    else:
        probes = context_probes() if tiny else place_probes()
    return diagnose(
        subject,
        load_concept(file, widths=widths),
        probes,
        other=None if against is None else load_concept(against, widths=widths),
        class_word=class_word,
        size=ImageSize(side, side),
        **sampling,
    )
