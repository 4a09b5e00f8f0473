"""What two paths cost a sampling; part of `contextual-inversion bench`."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ...core.models.diffusers_flexible import flexible
from ...core.models.dual_path import DualPath, DualPathModel, paths_in
from ...core.models.low_rank import LowRankDelta
from ...core.models.protocol import Conditioning, ImageSize, TextToImageModel
from ...core.models.sampling import sample
from ...core.models.text import encode_prompts
from .interleaved import sampling_figures
from .tuning_encoder import CONTEXT, SIDE, half_attention, linear_layers, probabilities, sd15_unet

RANK = 4
SOFT, HARD = "a photo of a red cat in the snow", "a photo of a red dog in the snow"


def dual_path_cost(
    model: TextToImageModel, *, side: int, batch: int = 1, steps: int = 4, repetitions: int = 5, prefix: str = ""
) -> dict[str, Any]:
    """Sampling over two paths and over one in turns: medians of the turns' ratios, by the clock and by processor time.

    `side` in pixels. A rank-4 delta on every attention projection, guidance on, so that half of each batch has two
    paths. `prefix` goes before the keys, to tell several models apart.
    """
    size = ImageSize(side, side)
    shape = (batch, model.latent_channels, side // model.latent_factor, side // model.latent_factor)
    with model.session(), torch.no_grad():
        hard, soft, negative = (
            model.conditioning(encode_prompts(model, [prompt]), size) for prompt in (HARD, SOFT, "")
        )
        path = DualPath(soft, random_deltas(model.linear_layers(), model.device), rows=slice(-batch, None))
        models = {False: model, True: DualPathModel(model, path)}

        def run(dual: bool) -> torch.Tensor:
            return sample(models[dual], hard, negative, shape=shape, steps=steps, seed=0).cpu()

        figures = sampling_figures(f"{prefix}dual_over_plain", run, repetitions)
    return {**figures, f"{prefix}dual_over_plain_side": side}


def random_deltas(layers: Mapping[str, Any], device: torch.device | str, rank: int = RANK) -> dict[str, LowRankDelta]:
    """A random delta on every attention projection."""
    found = {}
    for name, module in layers.items():
        if ".attn" in name:
            a = torch.randn(module.in_features, rank, device=device) / module.in_features**0.5
            found[name] = LowRankDelta(a, 0.01 * torch.randn(rank, module.out_features, device=device))
    return found


# At Stable Diffusion 1.5's true size, on tensors without numbers


def sd15_dual_path() -> dict[str, float]:
    """Two paths against one in a UNet pass of Stable Diffusion 1.5 at 512 pixels in half precision with guidance.

    The ratio of operations (multiplications and additions), and the most bytes that live at a time beside the weights,
    in GB. Fused attention, which every GPU has, makes neither probabilities nor copies in single precision; so they
    are not counted here either.
    """
    (plain, plain_bytes), (dual, dual_bytes) = (_sd15_pass(two) for two in (False, True))
    return {
        "sd15_dual_over_plain_operations": dual / plain,
        "sd15_plain_pass_gb": plain_bytes / 1e9,
        "sd15_dual_pass_gb": dual_bytes / 1e9,
    }


def _sd15_pass(two_paths: bool) -> tuple[int, int]:
    """Operations and the peak of live bytes of one pass with guidance: a batch of 2, the second row conditional."""
    unet = sd15_unet()
    layers = linear_layers(unet)
    crosses = [name for name, _ in unet.named_modules() if name.endswith(".attn2")]
    with torch.no_grad(), torch.device("meta"):
        latents, context = torch.zeros(2, 4, SIDE, SIDE).half(), torch.zeros(2, 77, CONTEXT).half()
        path = DualPath(Conditioning(context[:1]), random_deltas(layers, "meta"), rows=slice(1, 2))
        around = paths_in(layers, crosses, path) if two_paths else nullcontext()
        with flexible(unet), around, half_attention(), FlopCounterMode(display=False) as counter, peak_bytes() as peak:
            unet(latents, torch.zeros(2), encoder_hidden_states=context)
    return counter.get_total_flops(), peak[0]


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """A list whose one number is, on exit, the most bytes that tensors made inside held at a time."""
    with _Living() as living:
        found = [0]
        yield found
    found[0] = living.peak


class _Living(TorchDispatchMode):
    """Adds up the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor) and not probabilities(value):
                self._add(value)
        return found

    def _add(self, value: torch.Tensor) -> None:
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if self.users.setdefault(key, 0) == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        self.users[key] += 1
        weakref.finalize(value, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if self.users[key] == 0:
            self.now -= size
