"""Weights that learn beside the word or in its place: low-rank or whole changes of layers (METHODS.md 2.6, D1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..files.errors import LearnedNothingError
from ..maths.timestep_rank import rank_mask
from ..models.lora import to_lora
from ..models.low_rank import Delta, LowRankDelta, WeightDelta, apply_deltas, text_layers, text_weight_layers
from ..models.protocol import AttentionWatcher, Conditioning, TextToImageModel
from .methods import Layers, chosen_layers
from .run.draws import generator_for
from .settings import TrainSettings


class TrainableWeights:
    """Float32 changes of the layers that a method trains, 0 at first. `leaves` are their numbers, by layer and part.

    The model's own weights are neither read nor written. Make it inside the model's session. Raises ValueError where
    the model has none of the layers that the method is about.
    """

    def __init__(self, model: TextToImageModel, settings: TrainSettings) -> None:
        self.model = model
        self.leaves: dict[str, torch.Tensor] = {}
        method, rank = settings.trains, settings.low_rank
        unet = model.linear_layers() if rank or method.unet != "all" else model.weight_layers()
        text = text_layers(model) if rank or method.text_encoder != "all" else text_weight_layers(model)
        modules = {**unet, **text}
        names = _of_model(model, unet, method.unet) + chosen_layers(list(text), method.text_encoder)
        wanted = settings.only_layers
        names = [name for name in names if not wanted or any(part in name for part in wanted)]
        if not names:
            raise ValueError(f"{model.name} has no layer that {method.title} trains")
        for name in names:
            module = modules[name]
            if rank:
                first = LowRankDelta.initial(
                    module, rank, generator=generator_for(settings.seed, f"low rank/{name}", 0)
                )
                parts = {"a": first.a.detach(), "b": first.b.detach()}
            else:
                own = {part: getattr(module, part, None) for part in ("weight", "bias")}
                parts = {part: torch.zeros(value.shape) for part, value in own.items() if value is not None}
            for part, value in parts.items():
                start = value.to(model.device, torch.float32, copy=True)
                self.leaves[f"{name}.{part}"] = start.requires_grad_(True)
        self.names = names
        self.rank, self.least_rank = rank, settings.least_rank
        self.ranked = () if settings.least_rank is None else tuple(name for name in names if name in unet)
        self.low_rank = bool(rank)
        self._applied: ExitStack | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """The model with what was learned, and with gradient to it, inside."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it came, inside `on`."""
        was_on = self._applied is not None
        self._leave()
        try:
            yield
        finally:
            if was_on:
                self._enter()

    @contextmanager
    def at(self, timesteps: torch.Tensor) -> Iterator[None]:
        """Inside `on`, the UNet for a pass at `timesteps` (B,): where the rank depends on them, with what of it acts on
        each sample."""
        if self._applied is None or not self.ranked:
            yield
            return
        mask = rank_mask(timesteps, self.model.schedule.steps, self.rank, self.least_rank)
        deltas = self.deltas(self.leaves)
        # Deltas of their own for every pass: a checkpointed layer finds those it ran with when it runs again.
        with self.off(), apply_deltas(self.model, {name: deltas[name].masked(mask) for name in self.ranked}):
            yield

    def deltas(self, leaves: Mapping[str, torch.Tensor]) -> dict[str, Delta]:
        """The change of every layer that `leaves` mean."""
        if self.low_rank:
            return {name: LowRankDelta(leaves[f"{name}.a"], leaves[f"{name}.b"]) for name in self.names}
        return {name: WeightDelta(leaves[f"{name}.weight"], leaves.get(f"{name}.bias")) for name in self.names}

    def lora(self, leaves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`leaves` as the tensors of `Concept.lora`."""
        return to_lora(self.model, self.deltas(leaves))

    def check_learned(self) -> None:
        """Raises LearnedNothingError where every layer is as it came, or a number is not finite."""
        moved = False
        for name, value in self.leaves.items():
            if not bool(torch.isfinite(value).all()):
                raise LearnedNothingError(f"the change of {name} is not finite")
            # A low-rank change is 0 until its second factor is not.
            moved |= not name.endswith(".a") and bool((value != 0).any())
        if not moved:
            raise LearnedNothingError(f"none of {len(self.names)} layers changed; no gradient reached them")

    def _enter(self) -> None:
        self._applied = ExitStack()
        self._applied.enter_context(apply_deltas(self.model, self.deltas(self.leaves)))

    def _leave(self) -> None:
        applied, self._applied = self._applied, None
        if applied is not None:
            applied.close()


def _of_model(model: TextToImageModel, layers: Mapping[str, Any], which: Layers) -> list[str]:
    """Which of the `layers` beside the text encoders `which` means. A model whose layers have other names than
    diffusers' says itself which are its attention's."""
    own = getattr(model, "attention_layers", None)
    return list(own()) if own is not None and which == "attention" else chosen_layers(list(layers), which)


class RankedModel:
    """`model` in a training whose low-rank change depends on the timestep, for all that predicts with it."""

    def __init__(self, model: TextToImageModel, weights: TrainableWeights) -> None:
        self.model, self.weights = model, weights

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        conditioning: Conditioning,
        probe: AttentionWatcher | None = None,
    ) -> torch.Tensor:
        """As the model's."""
        with self.weights.at(timesteps):
            return self.model.predict(latents, timesteps, conditioning, probe)
