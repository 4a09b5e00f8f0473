"""What a word does to its prompt, in figures: sim1, sim2 and SKL over `probes`, and which positions carry it."""
