"""A training of one concept in a node: its checkpoint while it is unfinished, and what comes out of the node."""

from __future__ import annotations

import logging
from functools import partial

import torch
from comfy_api.latest import io

from ...core.concept import PLACEHOLDER
from ...core.prompts.picture_captions import captions_of_pictures
from ...core.training.captions import with_captions
from ...core.training.plan import Plan
from ...core.training.trainer import train
from ..comfy.model import ComfyModel
from .interrupted import Resumable, digest
from .live_view import OUTPUT
from .outlook import of_training
from .reporting import Reporter, loss_map
from .running import report_resumable

log = logging.getLogger(__name__)


def require_place(preview_every: int, preview_prompt: str, word: str) -> None:
    """Raises ValueError where there are to be previews and their prompt has no place for `word`."""
    if preview_every > 0 and PLACEHOLDER not in preview_prompt:
        raise ValueError(f"preview_prompt needs a {PLACEHOLDER} where {word} goes.")


def rgb(images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """The three colours of one batch of pictures, or of several."""
    return [rgb(batch) for batch in images] if isinstance(images, list) else images[..., :3]


def batches(values: torch.Tensor | list[torch.Tensor] | None) -> list[torch.Tensor | None]:
    """One batch or several as a list."""
    return values if isinstance(values, list) else [values]


def captioned(
    model: ComfyModel, plan: Plan, captions: str | list[str], images: torch.Tensor | list[torch.Tensor]
) -> Plan:
    """The plan in which each picture is trained on its own line of `captions`, or on its own text of several; what is
    not is said in the log."""
    if not any(text.strip() for text in ([captions] if isinstance(captions, str) else captions)):
        return plan
    if isinstance(captions, str) and sum(len(batch) for batch in batches(images)) == 1:
        captions = [captions]
    prompts = captions_of_pictures(captions, plan.settings.class_word)
    own, others = with_captions(model, plan, prompts)
    without = [str(number) for number, kept in enumerate(prompts, 1) if not kept]
    if without:
        log.warning("Contextual Inversion: captions without {} or the class word: of picture %s", ", ".join(without))
    for caption in others:
        log.warning("Contextual Inversion: this caption does not fit into the text encoder: %s", caption[:200])
    return own


def train_concept(
    node_id: str,
    model: ComfyModel,
    plan: Plan,
    *,
    images: torch.Tensor | list[torch.Tensor],
    masks: torch.Tensor | list[torch.Tensor] | None,
    continue_interrupted: bool,
) -> io.NodeOutput:
    """Train to the end, or until the page asks to stop and keep. Gives the concept, a LOSS_MAP and the page's view.

    When it is cancelled or an error ends it, the steps so far are in a checkpoint before that goes on its way. The
    concept is on the disk until SaveConcept has saved it.
    """
    images, settings = rgb(images), plan.settings
    facts = {
        "node": str(node_id),
        "model": model.fingerprint,
        "applied": model.applied,
        "autoencoder": model.autoencoder,
        "encoders": {name: encoder.fingerprint for name, encoder in model.text_encoders.items()},
        "settings": settings.identity(),
        "regularizers": [regularizer.state() for regularizer in plan.regularizers],
    }
    starting = {} if plan.start is None else plan.start.vectors
    start = partial(train, model, images, regularizers=plan.regularizers, masks=masks, initial=plan.start)
    tensors = (*batches(images), *batches(masks), *(starting[name] for name in sorted(starting)))
    subject = [str(node_id), settings.class_word, digest(None, batches(images))]
    work = Resumable(settings.name, start, settings, facts, tensors, subject)
    reporter = Reporter(node_id, of_training(plan.outline, settings), remark=model.remark and f". {model.remark}")
    reporter.show_beside(batches(images)[0][0])
    finished = report_resumable(
        work, reporter, continue_interrupted, stop=work.stop, learned=lambda event: event.concept
    )
    return io.NodeOutput(finished.concept, loss_map(finished.losses), ui={OUTPUT: [reporter.view.whole()]})
