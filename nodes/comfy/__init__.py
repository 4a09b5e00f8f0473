"""ComfyUI behind our seams: MODEL, CLIP and VAE as the protocol asks, words and LoRAs in clones, folders and files."""
