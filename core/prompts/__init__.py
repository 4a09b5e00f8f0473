"""Prompts with a place for the concept: their files, their built-in sets, and their tokens."""
