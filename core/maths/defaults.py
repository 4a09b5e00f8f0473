"""What is taken where nobody chooses: read by help texts, so it imports nothing."""

RHO = 0.15
