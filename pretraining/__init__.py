"""How the bundled tiny Stable Diffusion is made: `python -m contextual_inversion.pretraining.tiny_model --stage all`."""
