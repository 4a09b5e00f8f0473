"""The two ways in which a concept's file can disappoint."""


class ConceptFileError(ValueError):
    """A file cannot be read as a concept, or a concept cannot be written as a file. The message says what to do."""


class LearnedNothingError(RuntimeError):
    """Training ended and the word is what it was before, or the file does not hold what was learned."""
