"""Exact checks: what is on a picture of the world, read from its pixels.

The judge is a small segmentation network trained on rendered scenes that went through the model's VAE, supervised with
the scenes' masks. It knows every shape and every held-out concept. `docs/tiny_model.md` gives its rates on renders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...models.tiny.weights import read_weights
from ...world.concepts import CONCEPTS
from ...world.scenes import BACKGROUNDS, COLOURS, CONCEPT_PREFIX, IMAGE_SIZE, SHAPES, STYLES

KINDS = (*SHAPES, *(CONCEPT_PREFIX + name for name in CONCEPTS))
"""What a pixel of an object may belong to: a shape or a held-out concept. What any judge knows begins it."""
ROLES = ("background", "subject", "second")
HEADS = {"role": len(ROLES), "kind": len(KINDS), "colour": len(COLOURS), "background": len(BACKGROUNDS), "style": 3}
GRID = 32
"""The judge reads a picture on a grid of 32 x 32 cells."""
KIND_ROWS = "heads.kind.weight"
"""Of a judge's weights: a row for each kind that it knows."""
SMALLEST = 12
"""An object covers at least this many cells (a second object of 46 px covers about 80)."""


class Block(nn.Module):
    """Two 3x3 convolutions with group norm, and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n_out, 3, stride, 1), nn.GroupNorm(8, n_out)
        self.conv2, self.norm2 = nn.Conv2d(n_out, n_out, 3, 1, 1), nn.GroupNorm(8, n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        return F.silu(h + self.shortcut(x))


class JudgeNetwork(nn.Module):
    """Pictures (B, 3, 128, 128) in -1..1 to logits per cell: a dict of (B, classes, 32, 32), and features.

    It knows the first `kinds` of `KINDS`.
    """

    def __init__(self, kinds: int = len(KINDS)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.down1 = Block(24, 40, 2)
        self.down2 = Block(40, 64, 2)
        self.down3 = Block(64, 96, 2)
        self.middle = Block(96, 96)
        self.up2 = Block(96 + 64, 64)
        self.up1 = Block(64 + 40, 64)
        self.heads = nn.ModuleDict({name: nn.Conv2d(64, n, 1) for name, n in {**HEADS, "kind": kinds}.items()})

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, 64, 32, 32)."""
        x1 = self.down1(F.silu(self.stem(x)))
        x2 = self.down2(x1)
        x3 = self.middle(self.down3(x2))
        x2 = self.up2(torch.cat([F.interpolate(x3, scale_factor=2.0), x2], 1))
        return self.up1(torch.cat([F.interpolate(x2, scale_factor=2.0), x1], 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.read(self.features(x))

    def read(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """The logits of features (B, 64, 32, 32)."""
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Verdict:
    """What one picture shows. A missing object has shape and colour None.

    `subject` is a shape or "concept:<name>". `kinds` is the judge's mean probability of each kind that it knows inside
    the subject, in the order of `KINDS`; `mask` (128, 128) covers subject and second object, `subject_mask` the
    subject alone. `features` is a unit vector (64,): the judge's features averaged over both.
    """

    background: str
    style: str
    subject: str | None
    subject_colour: str | None
    second: str | None
    second_colour: str | None
    kinds: np.ndarray
    mask: np.ndarray
    subject_mask: np.ndarray
    features: np.ndarray

    @property
    def second_present(self) -> bool:
        return self.second is not None


def to_batch(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Pictures as (N, 3, 128, 128) in -1..1, from uint8 (N, H, W, 3) or from a float tensor (N, 3, H, W) in 0..1.

    Raises ValueError for another size.
    """
    if isinstance(images, np.ndarray):
        x = rearrange(torch.from_numpy(images), "b h w c -> b c h w").float() / 127.5 - 1
    else:
        x = images.detach().float().cpu() * 2 - 1
    if x.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"the judge reads {IMAGE_SIZE} x {IMAGE_SIZE} RGB pictures, not {tuple(x.shape)}")
    return x


def _mean_inside(values: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Mean of (C, h, w) over the True cells of (h, w)."""
    return values[:, region].mean(1)


class Judge:
    """Reads pictures. Takes the bundled weights unless a network is given."""

    @classmethod
    def of(cls, part: str) -> Judge:
        """The one in the weights of `part`, such as "flow_judge". It knows as many kinds as they have rows for.

        Raises FileNotFoundError without its file.
        """
        state = read_weights(part)
        network = JudgeNetwork(len(state[KIND_ROWS]))
        network.load_state_dict(state)
        return cls(network)

    def __init__(self, network: JudgeNetwork | None = None) -> None:
        network = Judge.of("judge").network if network is None else network
        self.network = network.eval().requires_grad_(False)
        self.kinds = KINDS[: network.heads["kind"].out_channels]

    def read(self, images: np.ndarray | torch.Tensor, batch: int = 64) -> list[Verdict]:
        """One verdict a picture; for the accepted forms see `to_batch`."""
        x = to_batch(images)
        verdicts = []
        with torch.no_grad():
            for part in x.split(batch):
                features = self.network.features(part)
                logits = self.network.read(features)
                inside = (logits["role"].argmax(1, keepdim=True) > 0).float()
                seen = F.normalize((features * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1), dim=-1)
                for i in range(len(part)):
                    own = {name: values[i].float() for name, values in logits.items()}
                    verdicts.append(self._verdict(own, seen[i].numpy()))
        return verdicts

    def _verdict(self, logits: dict[str, torch.Tensor], features: np.ndarray) -> Verdict:
        role = logits["role"].argmax(0)
        inside = {name: logits[name].softmax(0) for name in ("kind", "colour")}

        def object_at(region: torch.Tensor) -> tuple[str | None, str | None, torch.Tensor]:
            if int(region.sum()) < SMALLEST:
                return None, None, torch.zeros(len(self.kinds))
            kinds = _mean_inside(inside["kind"], region)
            colour = _mean_inside(inside["colour"], region).argmax()
            return self.kinds[int(kinds.argmax())], list(COLOURS)[int(colour)], kinds

        part = 1
        subject, subject_colour, kinds = object_at(role == part)
        second, second_colour, second_kinds = object_at(role == 2)
        if subject is None and second is not None:  # alone on the picture, it is the subject however small it is
            subject, subject_colour, kinds, second, second_colour = second, second_colour, second_kinds, None, None
            part = 2
        behind = role == 0 if bool((role == 0).any()) else torch.ones_like(role, dtype=torch.bool)
        background = _mean_inside(logits["background"].log_softmax(0), behind).argmax()
        style = logits["style"].log_softmax(0).mean((1, 2)).argmax()
        fine = F.interpolate(logits["role"][None], size=(IMAGE_SIZE,) * 2, mode="bilinear")[0].argmax(0)
        return Verdict(
            BACKGROUNDS[int(background)],
            STYLES[int(style)],
            subject,
            subject_colour,
            second,
            second_colour,
            kinds.numpy(),
            (fine > 0).numpy(),
            (fine == part).numpy(),
            features,
        )

    def concept_score(self, verdicts: Sequence[Verdict], concept: str) -> np.ndarray:
        """How much the subjects look like a held-out concept, 0..1 (N,): its mean probability inside the subject.

        Raises ValueError for one that this judge has not learned.
        """
        if CONCEPT_PREFIX + concept not in self.kinds:
            raise ValueError(f"this judge has not learned {concept!r}: the stage `judge` of the pretraining teaches it")
        column = self.kinds.index(CONCEPT_PREFIX + concept)
        return np.array([verdict.kinds[column] for verdict in verdicts])


def subject_similarity(verdicts: Sequence[Verdict], references: Sequence[Verdict]) -> np.ndarray:
    """Mean cosine (N,) between each picture's subject features and those of the reference pictures.

    The background is masked out, so that a copied background earns nothing.
    """
    own, theirs = (np.stack([verdict.features for verdict in those]) for those in (verdicts, references))
    return (own @ theirs.T).mean(1)


@lru_cache(maxsize=1)
def default_judge() -> Judge:
    """The judge with the bundled weights. Raises FileNotFoundError where they are missing."""
    return Judge()


def judge(images: np.ndarray | torch.Tensor | Sequence[np.ndarray]) -> list[Verdict]:
    """Read pictures with the bundled judge: uint8 (N, 128, 128, 3), float (N, 3, 128, 128) in 0..1, or a list."""
    if not isinstance(images, (np.ndarray, torch.Tensor)):
        images = np.stack(list(images))
    return default_judge().read(images)
