"""What stands for the plain way to learn a word, and for the best one. Nothing heavy is imported."""

PLAIN = "ti"
"""Textual inversion alone."""
BEST = "word-lora_core"
"""The pipeline of `claims` that shows the subject and obeys most often (docs/claims/leaders.json)."""
LATE_START = 0.04
"""Where in the sampling a LoRA begins to act that is kept from laying the picture out."""
