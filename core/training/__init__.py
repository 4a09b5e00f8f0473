"""Training: `trainer.train` is the whole story, planned by `plan` out of plain choices.

A training is made of `settings`, `pictures`, `prompts`, `objective` and `learner`; what is learned is a `word` and
`weights`. `run` holds what every long run is made of, `regularizers` all that is added to the diffusion loss,
`presets` the recipes of the papers as data. `contextualizer` and `one_picture` are trainings of their own.
"""
