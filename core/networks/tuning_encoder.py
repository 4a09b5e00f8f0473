"""The tuning-encoder: from one picture a word's input embedding and a low-rank change of the UNet (METHODS.md 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from .hypernetwork import Factors, Hypernetwork, targets_of
from .trunk import Trunk, TrunkFeatures

if TYPE_CHECKING:
    from ..models.protocol import ImageFeatures, PictureEncoder, TextToImageModel

TIMESTEPS = (200, 400, 600, 800)
"""METHODS.md 3.2: where the UNet looks at the picture, whatever its noise schedule's length; of 1000."""
TRIALS = 256
"""Random features that the first length of a predicted embedding is measured on."""


@dataclass(frozen=True)
class SizePreset:
    """Sizes that do not follow from the model: METHODS.md 3.3. The grid is halved to 2 x 2."""

    grid: int
    map_width: int
    stages: tuple[int, ...]
    feature: int
    width: int
    layers: int
    heads: int
    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1 or self.grid >> (len(self.stages) - 1) < 1:
            raise ValueError(f"a rank of at least 1 and a grid that can be halved for every stage, not {self}")


PRESETS: Mapping[str, SizePreset] = {
    "tiny": SizePreset(grid=8, map_width=16, stages=(64, 96, 128), feature=128, width=128, layers=2, heads=4),
    "sd": SizePreset(grid=16, map_width=256, stages=(512, 512, 768, 1024), feature=1024, width=512, layers=4, heads=8),
}
"""For narrow models such as the bundled one, and METHODS.md 3.3's for Stable Diffusion."""


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the tensors of a tuning-encoder, read from a model and an image encoder."""

    clip_width: int
    clip_vectors: int
    maps: tuple[int, ...]
    targets: Mapping[str, tuple[int, int]]
    embeddings: Mapping[str, int]
    preset: SizePreset

    @classmethod
    def of(cls, model: TextToImageModel, images: PictureEncoder, preset: SizePreset, maps: Sequence[int]) -> Shape:
        """`maps` are the channels of `model.features`."""
        embeddings = {name: encoder.width for name, encoder in model.text_encoders.items()}
        return cls(images.width, images.vectors, tuple(maps), targets_of(model.linear_layers()), embeddings, preset)

    def trunk(self) -> Trunk:
        """A trunk of this shape."""
        preset = self.preset
        return Trunk(
            self.clip_width,
            self.clip_vectors,
            self.maps,
            grid=preset.grid,
            map_width=preset.map_width,
            stages=preset.stages,
            feature=preset.feature,
        )

    def hypernetwork(self) -> Hypernetwork:
        """A hypernetwork of this shape."""
        preset = self.preset
        return Hypernetwork(
            self.targets,
            feature=preset.feature,
            token=preset.stages[-1],
            width=preset.width,
            layers=preset.layers,
            heads=preset.heads,
            rank=preset.rank,
        )

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Shape:
        """From `plain`'s data. Raises KeyError, TypeError or ValueError for anything else."""
        preset = {**data["preset"], "stages": tuple(data["preset"]["stages"])}
        targets = {str(name): (int(a), int(b)) for name, (a, b) in data["targets"].items()}
        maps = tuple(int(width) for width in data["maps"])
        embeddings = {str(name): int(width) for name, width in data["embeddings"].items()}
        return cls(int(data["clip_width"]), int(data["clip_vectors"]), maps, targets, embeddings, SizePreset(**preset))


@dataclass(frozen=True)
class Identity:
    """The models that a tuning-encoder belongs to, by name and by fingerprints of their weights."""

    model: str
    unet: str
    text_encoders: Mapping[str, str]
    image_encoder: str

    @classmethod
    def of(cls, model: TextToImageModel, images: PictureEncoder) -> Identity:
        texts = {name: encoder.fingerprint for name, encoder in model.text_encoders.items()}
        return cls(model.name, model.fingerprint, texts, images.fingerprint)

    def __str__(self) -> str:
        texts = ", ".join(f"{name} {print_}" for name, print_ in self.text_encoders.items())
        return f"{self.model} (UNet {self.unet}, {texts}, image encoder {self.image_encoder})"

    def require(self, other: Identity) -> None:
        """Raises ValueError that names both unless all weights are the same; names do not count."""
        parts = {
            "the UNet": (self.unet, other.unet),
            "the text encoder": (dict(self.text_encoders), dict(other.text_encoders)),
            "the image encoder": (self.image_encoder, other.image_encoder),
        }
        differing = [part for part, (ours, theirs) in parts.items() if ours != theirs]
        if differing:
            raise ValueError(
                f"this tuning-encoder was trained on {self}, but here is {other}: {' and '.join(differing)} "
                f"{'differ' if len(differing) > 1 else 'differs'}, by name or by weights. What it predicts means "
                "something to its own model only; load one of this model, or train it with "
                "`contextual-inversion pretrain-encoder`"
            )


@dataclass(frozen=True)
class Prediction:
    """For each picture of a batch: `vectors`, encoder name -> (B, d), and `factors`, matrix name -> A and B."""

    vectors: Mapping[str, torch.Tensor]
    factors: Mapping[str, Factors] = field(repr=False)


class TokenEmbedder(nn.Module):
    """LN, linear, GELU, linear: the feature f (B, F) to an input embedding v* (B, d) (METHODS.md 3.3)."""

    def __init__(self, feature: int, width: int) -> None:
        super().__init__()
        self.norm, self.hidden, self.out = nn.LayerNorm(feature), nn.Linear(feature, feature), nn.Linear(feature, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.hidden(self.norm(features))))

    @torch.no_grad()
    def scale_to(self, norm: float, generator: torch.Generator) -> None:
        """Make the mean length of what it predicts `norm`, measured on random features."""
        self.out.bias.zero_()
        features = torch.randn(TRIALS, self.hidden.in_features, generator=generator)
        self.out.weight.mul_(norm / self(features).norm(dim=1).mean())


class TuningEncoder(nn.Module):
    """Trunk, a token embedder for each text encoder, and the hypernetwork (METHODS.md 3.3).

    It looks at pictures of `resolution` pixels a side. `timesteps` are where it predicts, `seed` fixes the noise there.
    `negatives` (n, d) per text encoder are embeddings that it predicted for other subjects: what a contrastive loss on
    a single picture pushes away from (3.4). `known` are the ids of the words that its model was trained on, by text
    encoder, None: the whole vocabulary. `provenance` is plain data.
    """

    def __init__(
        self,
        identity: Identity,
        shape: Shape,
        *,
        resolution: int = 512,
        timesteps: Sequence[int] = TIMESTEPS,
        seed: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.identity, self.shape, self.resolution, self.seed = identity, shape, int(resolution), int(seed)
        self.timesteps = tuple(int(one) for one in timesteps)
        if not self.timesteps or min(self.timesteps) < 0:
            raise ValueError(f"a tuning-encoder predicts at one timestep at least, not at {self.timesteps}")
        self.provenance = dict(provenance or {})
        self.negatives: dict[str, torch.Tensor] = {}
        self.known: Mapping[str, torch.Tensor] | None = None
        with torch.random.fork_rng(devices=[]):  # what `initialise` or a file replaces must not move anyone's numbers
            torch.manual_seed(0)
            self.trunk = shape.trunk()
            self.embedders = nn.ModuleDict(
                {name: TokenEmbedder(shape.preset.feature, width) for name, width in shape.embeddings.items()}
            )
            self.hypernetwork = shape.hypernetwork()

    @property
    def numbers(self) -> int:
        """How many weights it has."""
        return sum(value.numel() for value in self.parameters())

    def look(self, image: ImageFeatures, maps: Sequence[torch.Tensor]) -> TrunkFeatures:
        """The trunk's features of pictures whose noisy latents the UNet's encoder sees as `maps`."""
        return self.trunk(image.vectors, image.grid, maps)

    def forward(self, features: TrunkFeatures) -> Prediction:
        """What to change, from features of one timestep or their mean over several."""
        vectors = {name: embed(features.pooled) for name, embed in self.embedders.items()}
        return Prediction(vectors, self.hypernetwork(features))


def initialise(encoder: TuningEncoder, norms: Mapping[str, float], generator: torch.Generator) -> TuningEncoder:
    """Starting weights, drawn on the CPU: embeddings as long as the vocabulary's mean (`norms` per text encoder), B = 0
    (METHODS.md 3.3); the convolutions' and linear layers' are PyTorch's own."""
    encoder.hypernetwork.initialise(generator)
    for name, embedder in encoder.embedders.items():
        embedder.scale_to(norms[name], generator)
    return encoder
