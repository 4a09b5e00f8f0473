"""Write a Stable Diffusion pipeline of random weights in true shapes, for `bench --model FOLDER --peer SCRIPT`.

    python scripts/random_pipeline.py FOLDER                 # SD 1.5 at 256 pixels, 4 GB
    python scripts/random_pipeline.py FOLDER --quarter       # 96 to 320 channels, CLIP-L's text encoder, 128 pixels

Time and memory of a step do not depend on what the weights say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SIZES = {
    False: {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "side": 256},
    True: {"unet": (96, 192, 320, 320), "vae": (32, 64, 128, 128), "side": 128},
}


def write(folder: Path, quarter: bool, side: int | None) -> None:
    """The pipeline, float32, at its number of pixels or `side`."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from contextual_inversion.cli.bench.mlm import SD15_TEXT, SD15_UNET
    from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer

    torch.manual_seed(0)
    size = SIZES[quarter]
    pixels = side or size["side"]
    blocks = len(size["vae"])
    vae = AutoencoderKL(
        block_out_channels=size["vae"],
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=2,
        latent_channels=4,
        sample_size=pixels,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**SD15_TEXT)),
        tokenizer=tiny_tokenizer(),
        unet=UNet2DConditionModel(**SD15_UNET | {"sample_size": pixels // 8, "block_out_channels": size["unet"]}),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pipeline goes")
    parser.add_argument("--quarter", action="store_true", help="a quarter-size UNet and autoencoder")
    parser.add_argument("--side", type=int, help="pixels; 256, or 128 for the quarter")
    options = parser.parse_args()
    write(options.folder, options.quarter, options.side)


if __name__ == "__main__":
    main()
