"""Models behind one protocol: the seam, the diffusers adapter, prompts, sampling and the bundled tiny model."""
