"""What the VAE keeps of a picture: `python -m contextual_inversion.pretraining.vae_report --out DIR` prints JSON.

Held-out scenes and the ten held-out concepts in dB, and the spots of the spotted concepts counted (`core.world.spots`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from ..core.models.tiny.weights import FOLDER
from ..core.world.concepts import CONCEPTS
from ..core.world.render import concept_images
from ..core.world.scenes import BACKGROUNDS
from ..core.world.spots import SpotCount, compare_spots
from .forms import Form
from .pictures import pictures
from .vae import psnr, reconstruct

CPU = torch.device("cpu")
SPOTTED = tuple(c.name for c in CONCEPTS.values() if c.texture == "spotted")


def copies(vae: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, 3) uint8 through the autoencoder, as uint8 again."""
    return (reconstruct(vae, images, CPU) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def counted_spots(vae: torch.nn.Module, name: str, n: int = 2) -> list[SpotCount]:
    """The spots of a spotted concept through the autoencoder, `n` pictures on each background."""
    concept, counts = CONCEPTS[name], []
    for background in BACKGROUNDS:
        images, masks, _ = concept_images(name, n, background=background)
        for image, copy, mask in zip(images, copies(vae, images), masks, strict=True):
            counts.append(compare_spots(image, copy, mask.subject, concept.second_colour, concept.colour))
    return counts


def summary(counts: list[SpotCount]) -> dict[str, float]:
    """Totals over pictures: spots, those found, those of the right colour; pictures that kept all; worst distance."""
    total = {key: sum(getattr(c, key) for c in counts) for key in ("number", "found", "named", "added", "kept")}
    return {**total, "pictures": len(counts), "worst": round(max(c.worst for c in counts), 1)}


def vae_report(vae: torch.nn.Module, folder: Path, n: int = 256) -> dict[str, dict[str, float]]:
    """dB on `n` held-out scenes and on four pictures of each concept, and the spots. `folder` keeps rendered scenes."""
    _, images, masks = pictures(folder / "pictures", "test", n)
    drawn = [concept_images(name, 4) for name in CONCEPTS]
    subjects = np.stack([mask.subject for _, shown, _ in drawn for mask in shown])
    return {
        "scenes": psnr(vae, images, masks, CPU),
        "concepts": psnr(vae, np.concatenate([image for image, _, _ in drawn]), subjects, CPU),
        **{f"spots of {name}": summary(counted_spots(vae, name)) for name in SPOTTED},
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the report of a VAE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="rendered pictures go here")
    parser.add_argument("--weights", type=Path, default=FOLDER, help="folder of the VAE; the bundled one if not given")
    options = parser.parse_args(arguments)
    print(json.dumps(vae_report(Form(options.weights).load("vae"), options.out), indent=1))


if __name__ == "__main__":
    main()
