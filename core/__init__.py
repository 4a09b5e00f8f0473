"""All that knows no ComfyUI: the equations, the models, the prompts, the trainer, the files and the toy world."""
