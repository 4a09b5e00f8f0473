"""Looking at what was learned: diagnostics in the text encoder, and exact evaluation on ConceptWorld."""
