"""Torch modules that are trained: the contextualizer and, later, the tuning-encoder."""
