"""What joins the diffusion loss: `seam` is the signature; `context` is CoRe; then `mlm`, `nearest_word` and `prior`."""
