"""A word and a LoRA of one picture: predicted by a tuning-encoder, tuned for a dozen steps; how it is pretrained."""
