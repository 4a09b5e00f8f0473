"""Models behind one protocol: the seam, the diffusers adapter, what their tables say of words, and the tiny model."""
