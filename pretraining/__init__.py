"""How the bundled tiny Stable Diffusion is made; `tiny_model` is the command."""
