"""Training: `trainer.train` is the whole story, planned by `plan` out of plain choices.

`preparation` makes of `settings` and `pictures` all that a run works with: the `learner`, whose `word` and `weights`
move, and the `objective`, METHODS.md C4 over what a step looks at (`instances`), says in `prompts` and sees in UNet
`passes`. `run` holds what every long run is made of, `regularizers` all that is added to the diffusion loss, `presets`
the recipes of the papers as data, `methods` what can be trained; `prompt_repair` is a run without a diffusion loss.
`contextualizer` and `one_picture` are trainings of their own.
"""
