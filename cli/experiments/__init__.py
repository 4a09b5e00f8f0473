"""Commands that try the papers' claims on ConceptWorld, and what they share: trials, tables, reports."""
