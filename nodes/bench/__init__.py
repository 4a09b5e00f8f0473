"""What the ComfyUI side costs, for `contextual-inversion bench`; `__main__` is run in a process of its own."""
