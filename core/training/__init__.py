"""Training: `trainer.train` is the whole story; it is made of `settings`, `draws`, `pictures`, `prompts`,
`learner`, `history` and `checkpoint`, and speaks through `events`.

`regularizer` is the seam for everything added to the diffusion loss, `core_regularizer` is CoRe behind the `Regularizer` seam, `presets` the recipes of the papers as data.
"""
