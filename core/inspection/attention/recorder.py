"""Recording cross-attention beside a computation that it leaves as it is (METHODS.md section 4).

`AttentionRecorder` keeps running sums by layer and by stretch of the sampling, so its memory does not grow with the
number of steps. It knows no model: an adapter shows it queries and keys (`core.models.protocol.AttentionObserver`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch.nn import functional

from ...models.attention import attention_probabilities
from .layer_groups import LayerPlan, layer_plan
from .maps import AttentionMaps, LayerGroup

BINS, CELLS = 8, 32
"""Stretches of the sampling that are kept apart, and the side to which larger maps are pooled."""
CHUNK = 2**25
"""Probabilities computed at once; a larger batch is taken picture by picture."""

Rows = Mapping[Hashable, Sequence[slice]]
"""Which rows of the batch belong to which conditioning. Rows that are not named are not looked at."""


@dataclass
class _Sums:
    """Of one group of layers: `total` (bins, images, L, h, w) and, per bin, how many maps were added."""

    total: torch.Tensor
    counts: list[int]


@dataclass
class AttentionRecorder:
    """Mean cross-attention maps of the conditional part of a sampling.

    `bins` stretches of equal length; maps larger than `cells` a side are pooled to at most that before they are added.
    """

    bins: int = BINS
    cells: int = CELLS
    finished: bool = False
    """A whole sampling, or all that was asked for, has been seen."""
    sampling_digest: str | None = None
    """Of what came of the sampling that was recorded, where the adapter says it."""
    samplings: int = 0
    """How many there were by then in the same run of a graph, where the adapter knows runs; the last is kept."""
    trouble: str | None = None
    """Why the recording ended early. Looking on never stops the sampling itself."""
    _run: Hashable = None
    _periods: dict[Hashable, int] = field(default_factory=dict)
    _plan: LayerPlan | None = None
    _sums: dict[Hashable, dict[int, _Sums]] = field(default_factory=dict)

    def begin(self, layers: Sequence[str]) -> None:
        """Forget everything; a sampling of a model with these cross-attention layers is about to start."""
        self._plan, self._sums, self._periods = layer_plan(layers), {}, {}
        self.finished, self.trouble = False, None

    def finish(self, sampling_digest: str | None = None, run: Hashable = None) -> None:
        """The sampling is over: hand the device's memory back."""
        self.sampling_digest = sampling_digest
        self.samplings = self.samplings + 1 if run is not None and run == self._run else 1
        self._run = run
        for groups in self._sums.values():
            for sums in groups.values():
                sums.total = sums.total.cpu()
        self.finished = True

    def forget(self) -> None:
        """The sampling failed: half a recording is none."""
        self._sums, self.finished = {}, False

    def watch(
        self,
        progress: float,
        rows: Rows,
        latent_size: tuple[int, int],
        periods: Mapping[Hashable, int] | None = None,
    ) -> Pass:
        """The observer of one UNet pass. `progress` is in [0, 1), `latent_size` (h, w) in latent cells, `periods` say
        of a conditioning after how many tokens its context repeats itself at the earliest."""
        if self._plan is None:
            raise RuntimeError("begin a recording before a pass is watched")
        for name, period in (periods or {}).items():
            self._periods[name] = max(period, self._periods.get(name, 0))
        return Pass(self, min(int(progress * self.bins), self.bins - 1), rows, latent_size)

    def sampling(
        self, layers: Sequence[str], latent_size: tuple[int, int], *, last_step: bool = False
    ) -> Callable[[int, int, slice], Pass | None]:
        """What `core.models.sampling.sample` takes as `probe`: every step, or the last alone. Begins a recording."""
        self.begin(layers)

        def probe(step: int, steps: int, rows: slice) -> Pass | None:
            if last_step and step + 1 < steps:
                return None
            return self.watch(step / steps, {"prompt": [rows]}, latent_size)

        return probe

    def add(self, conditioning: Hashable, layer: int, stretch: int, maps: torch.Tensor) -> None:
        """Add head-averaged `maps` (images, L, h, w) of one layer; pooled here."""
        assert self._plan is not None
        maps, group = pooled(maps, self.cells), self._plan.group_of[layer]
        groups = self._sums.setdefault(conditioning, {})
        if group not in groups:
            groups[group] = _Sums(maps.new_zeros(self.bins, *maps.shape), [0] * self.bins)
        sums = groups[group]
        # ComfyUI repeats the shorter of two contexts to batch them; the copies' probabilities add up to the original's.
        tokens = min(maps.shape[1], sums.total.shape[2])
        maps = folded(maps, tokens, axis=1)
        if sums.total.shape[2] != tokens:
            sums.total = folded(sums.total, tokens, axis=2)
        if maps.shape != sums.total.shape[1:]:
            expected = tuple(sums.total.shape[1:])
            self.trouble = f"maps of {tuple(maps.shape)} came after maps of {expected}; pictures changed their size"
            return
        sums.total[stretch] += maps
        sums.counts[stretch] += 1

    @property
    def conditionings(self) -> int:
        """How many conditionings were seen: more than one where several positive prompts are combined."""
        return len(self._sums)

    def maps(self, conditioning: int = 0) -> AttentionMaps:
        """The mean maps of one conditioning, in the order in which they were first seen.

        Raises ValueError where nothing was recorded, or not so many conditionings.
        """
        if self.trouble:
            raise ValueError(f"the attention could not be recorded: {self.trouble}")
        if not self._sums or self._plan is None:
            raise ValueError("no attention was recorded: sample with the model that comes out of the recording first")
        if not 0 <= conditioning < len(self._sums):
            raise ValueError(f"{len(self._sums)} conditionings were recorded; there is no number {conditioning + 1}")
        name, groups = list(self._sums.items())[conditioning]
        order = sorted(groups)
        seen = [b for b in range(self.bins) if any(groups[group].counts[b] for group in order)]
        ends = [*(b / self.bins for b in seen[1:]), 1.0]
        return AttentionMaps(
            groups=tuple(self._described(group, groups[group].total) for group in order),
            bins=tuple((b / self.bins, end) for b, end in zip(seen, ends, strict=True)),
            weights=tuple(max(groups[group].counts[b] for group in order) for b in seen),
            values=tuple(_means(groups[group], seen) for group in order),
            period=self._periods.get(name),
        )

    def _described(self, group: int, total: torch.Tensor) -> LayerGroup:
        assert self._plan is not None
        names, part = self._plan.names[group], self._plan.parts[group]
        height, width = (int(side) for side in total.shape[-2:])
        depth = group / max(1, len(self._plan.names) - 1)
        return LayerGroup(f"{height} x {width}, {part}", part, names, depth, height, width)


@dataclass
class Pass:
    """An `AttentionObserver` of one UNet pass; what it sees goes into `recorder`."""

    recorder: AttentionRecorder
    stretch: int
    rows: Rows
    latent_size: tuple[int, int]

    @torch.no_grad()
    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        if self.recorder.trouble:
            return
        size = size or map_size(query.shape[2], *self.latent_size)
        self._add(layer, lambda rows: head_means(query[rows], key[rows], scale), size)

    @torch.no_grad()
    def observe_shares(self, layer: int, shares: torch.Tensor, size: tuple[int, int]) -> None:
        if not self.recorder.trouble:
            self._add(layer, lambda rows: shares[rows].mean(dim=1), size)

    def _add(self, layer: int, seen: Callable[[slice], torch.Tensor], size: tuple[int, int]) -> None:
        for conditioning, slices in self.rows.items():
            for rows in slices:
                maps = rearrange(seen(rows), "b (h w) l -> b l h w", h=size[0], w=size[1])
                self.recorder.add(conditioning, layer, self.stretch, maps)


def head_means(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(Q K^T scale) averaged over heads: (B, H, N, dh), (B, H, L, dh) -> (B, N, L) float32."""
    batch, heads, cells = query.shape[:3]
    if batch > 1 and batch * heads * cells * key.shape[2] > CHUNK:
        pieces = zip(query.split(1), key.split(1), strict=True)
        return torch.cat([head_means(one, other, scale) for one, other in pieces])
    return attention_probabilities(query, key, scale).mean(dim=1)


def map_size(cells: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a layer with `cells` positions in a UNet that halves (h, w) latents, odd sides rounded up.

    Raises ValueError where no level has so many.
    """
    while height * width > cells and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != cells:
        raise ValueError(f"no level of the UNet has {cells} positions")
    return height, width


def pooled(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Maps (B, L, h, w) averaged down by a whole factor until neither side is longer than `cells`."""
    height, width = maps.shape[-2:]
    factor = -(-max(height, width) // cells)
    if factor == 1:
        return maps
    return functional.adaptive_avg_pool2d(maps, (-(-height // factor), -(-width // factor)))


def folded(maps: torch.Tensor, tokens: int, axis: int) -> torch.Tensor:
    """Add up the copies of a context that was repeated along `axis` to a multiple of `tokens`, else ValueError."""
    length = maps.shape[axis]
    if length == tokens:
        return maps
    if length % tokens:
        raise ValueError(f"a context of {length} tokens is no repetition of one of {tokens}")
    return maps.unflatten(axis, (length // tokens, tokens)).sum(dim=axis)


def _means(sums: _Sums, seen: Sequence[int]) -> torch.Tensor:
    counts = torch.tensor([max(1, sums.counts[b]) for b in seen], device=sums.total.device)
    return sums.total[list(seen)] / rearrange(counts, "bins -> bins 1 1 1 1")
