"""What a person may choose from, and what is taken where nobody chooses: read by help texts, so it imports nothing."""

from __future__ import annotations

from typing import Literal

Precision = Literal["model", "fp32", "bf16", "fp16"]
"""What a training computes in: the model's own type, or another."""
UNetPasses = Literal["joint", "separate"]
"""The regularizers' UNet passes in one batch with the main pass, or after it."""
EncoderPrecision = Literal["fp32", "bf16"]
"""Of pretraining a tuning-encoder."""
PretrainingMode = Literal["non_padding", "masked"]
"""Of pretraining a contextualizer: which tokens its loss counts."""
Tuned = Literal["lora and vectors", "lora", "vectors"]
"""What of a prediction is tuned."""

CLASS_PICTURES = 100
"""For prior preservation, where nobody says how many."""
REPAIR_STEPS, REPAIR_RATE, REPAIR_BATCH = 10, 5e-4, 6
"""METHODS.md 1.6."""
MOST_STEPS = 12
"""METHODS.md 3.7: what the paper found to be enough for a prediction; more has to be asked for."""
