"""Pictures of ConceptWorld, checked exactly: the judge, its report, and evaluation of learned words."""
