"""The equations, one function each, on Array API arrays: NumPy, PyTorch and JAX run the same code.

`schedule` is the diffusion loss (C1) and what it needs, `context` CoRe's two losses (C2, C3), `mlm` those of MLM (M3 to
M5), `contrastive` those of the tuning-encoder (D2 to D4), `objective` their weighted sum (C4, C6, D5). `norms` is what
becomes of the length of a learned vector (C5 and METHODS.md 6.1), `low_rank`, `timestep_rank` and `dual_path` how a
layer is changed (D1, D6), `similarity` and `evaluation` the measures, `statistics` the intervals.
"""
