"""Training: `trainer.train` is the whole story. It is made of `settings`, `draws`, `pictures`, `prompts`, `learner`,
`history` and `checkpoint`, and speaks through `events`.

`regularizer` is the seam for everything that is added to the diffusion loss, `core_regularizer` CoRe behind it, and
`presets` the recipes of the papers as data.
"""
