"""What is taken where nobody chooses: read by help texts, so it imports nothing."""

CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
"""The papers' encoders (METHODS.md 2.7): CLIP ViT-B/32 and DINO ViT-S/16."""
