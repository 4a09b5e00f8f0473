"""Text-to-image models that are no UNet of Stable Diffusion: a table of what differs between them, and what they share.

`facts` is the table, `gradients` what lets ComfyUI's code be differentiated, `blocks` runs the denoisers' and the text
encoders' blocks, `attention` looks at their attention, `encoders` and `joining` make a prompt of rows, `requirements`
says what belongs together. `family_model` beside this room is all of it behind the protocol.
"""
