"""The equations, one function each, on Array API arrays: NumPy, PyTorch and JAX run the same code.

`schedule` is the diffusion loss (C1) and what it needs, `core` the context regularisation (C2-C4, C6), `norms` what
becomes of the length of a learned vector (C5 and METHODS.md 6.1), `similarity` the measures, `statistics` the
intervals.
"""
