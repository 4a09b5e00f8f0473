"""What is taken where nobody chooses: read by help texts, so it imports nothing."""

REAL_SHARE = 0.7
"""METHODS.md 2.4: of the training text, 70 % are captions of real pictures and 30 % synthetic."""
