"""Tiny CLIP and DINO with random weights, saved as folders such as one downloads."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from contextual_inversion.core.models.tiny import tiny_tokenizer

SIDE = 32
OLD_CLIP = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "size": SIDE,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": SIDE,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""As openai/clip-vit-base-patch32 spells it, at another size."""
OLD_VIT = {
    "feature_extractor_type": "ViTFeatureExtractor",
    "do_resize": True,
    "size": SIDE,
    "resample": 2,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""As facebook/dino-vits16 spells it, at another size."""


def save_clip(folder: Path) -> CLIPModel:
    """A CLIP in `folder`, and the model itself."""
    common = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 24}
    config = CLIPConfig(
        text_config={
            "hidden_size": 32,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
            **common,
        },
        vision_config={"hidden_size": 48, "image_size": SIDE, "patch_size": 8, **common},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    spread(model)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(OLD_CLIP))
    return model


def save_dino(folder: Path) -> ViTModel:
    """A DINO in `folder`, and the model itself."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    spread(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(OLD_VIT))
    return model


def spread(model: torch.nn.Module) -> None:
    """Larger random weights than at the start of a training, so that pictures get different features."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embedding" not in name:
                weight.normal_(std=2.0 / weight.shape[1] ** 0.5)
