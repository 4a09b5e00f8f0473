"""What talks to the page: running trainings, their news and views, and what is left of one that was interrupted."""
