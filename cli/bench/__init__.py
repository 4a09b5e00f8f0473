"""`contextual-inversion bench`: what a step costs, part by part; `command` is the whole of it."""
