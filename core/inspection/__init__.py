"""Looking at what was learned: diagnostics of prompts, attention maps, evaluation, and exact checks on ConceptWorld."""
