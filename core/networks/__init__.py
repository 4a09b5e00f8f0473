"""Torch modules that are trained: the contextualizer and the tuning-encoder."""
