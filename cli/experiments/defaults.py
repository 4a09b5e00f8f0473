"""What stands for the plain way to learn a word, and for the best ones. Nothing heavy is imported."""

PLAIN = "ti"
"""Textual inversion alone."""
BEST, BEST_STEPS = "ti_lora", (250, 120)
"""The pipeline of `claims` that shows the subject and obeys most often, and the steps of its word and of its LoRA that
do it: in twice the seconds of plain textual inversion (docs/claims/longer.json)."""
JOINT = "word-lora_core"
"""The one that does in the seconds of plain textual inversion (docs/claims/leaders.json)."""
LATE_START = 0.04
"""Where in the sampling a LoRA begins to act that is kept from laying the picture out."""
