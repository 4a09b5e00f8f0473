"""Models behind one protocol, and what needs nothing more of a model than that.

`protocol` is the seam; `diffusers_adapter` and the files beside it are one of its two implementations, `image_encoder`
reads pictures, `tiny` is the bundled model. On the seam stand `text` (prompts to conditioning), `sampling`, `low_rank`
and `lora` (changes of layers), `dual_path`, `attention` by hand, `replay` (checkpointed layers), `families` (what
follows from the family alone), and `words` and `vocabulary` (what a token table says).
"""
