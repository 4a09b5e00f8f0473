"""Where long work hears that somebody wants it to stop."""

from __future__ import annotations

import comfy.model_management


def hear_cancel() -> None:
    """Raises ComfyUI's InterruptProcessingException where Cancel was pressed. Called at every pass of a model, so that
    no phase of any node runs on for long."""
    comfy.model_management.throw_exception_if_processing_interrupted()
