"""CoRe: what the concept does to the *context* words, in the text encoder (C2) and in the cross-attention (C3).

Two prompts are made from one template, one with the concept, one with its super-category word. `context_positions`
names the tokens that both share; the losses compare the two prompts at those tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from .arrays import Array, mean, require_same_shape, take, widen
from .similarity import cosine_distance

CosineAxis = Literal["paper", "official"]
AttentionMode = Literal["official", "paper"]

LAMBDA_EMB = 1.5e-4
LAMBDA_ATTN = 0.05


def context_positions(
    ids: Sequence[int] | np.ndarray,
    replaced: Sequence[int] | np.ndarray,
    eot: int,
    *,
    bos: bool = True,
    padding: bool = False,
) -> np.ndarray:
    """METHODS.md 1.2: the positions of the context tokens of one row of token `ids` (L,), BOS first: BOS up to and
    including the first `eot`, minus `replaced`, the positions of the concept's vectors (or of the class word's tokens).

    `bos=False` leaves BOS out (its output is constant under a causal mask and dilutes the mean); `padding=True` goes on
    to the end of the row. Raises ValueError where the row has no `eot` or `replaced` lies outside the prompt.
    """
    ids, replaced = np.asarray(ids), np.asarray(replaced, dtype=np.int64)
    ends = np.flatnonzero(ids == eot)
    if ids.ndim != 1 or ends.size == 0:
        raise ValueError(f"one row of token ids that holds EOT ({eot}) expected, got shape {ids.shape}")
    end = int(ends[0])
    if replaced.size == 0 or replaced.min() < 1 or replaced.max() >= end:
        raise ValueError(f"replaced positions {replaced.tolist()} must lie between BOS (0) and EOT ({end})")
    kept = np.ones(ids.size if padding else end + 1, dtype=bool)
    kept[replaced] = False
    kept[0] = bos
    return np.flatnonzero(kept)


def paired_context_positions(
    ids: Sequence[int] | np.ndarray,
    concept: Sequence[int] | np.ndarray,
    reference_ids: Sequence[int] | np.ndarray,
    super_category: Sequence[int] | np.ndarray,
    eot: int,
    *,
    bos: bool = True,
    padding: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """METHODS.md 1.2: the context positions of the concept's row and of the super-category's row, equally many and
    token by token the same, each row with its own EOT, however many vectors and class tokens there are.

    With `padding`, rows that differ in length share only the shorter padding. Raises ValueError where the context
    tokens of the two rows are not the same.
    """
    ours = context_positions(ids, concept, eot, bos=bos, padding=padding)
    theirs = context_positions(reference_ids, super_category, eot, bos=bos, padding=padding)
    if padding:
        shared = min(ours.size, theirs.size)
        ours, theirs = ours[:shared], theirs[:shared]
    if not np.array_equal(np.asarray(ids)[ours], np.asarray(reference_ids)[theirs]):
        raise ValueError(f"the prompts do not share their context: {ours.size} and {theirs.size} tokens")
    return ours, theirs


def embedding_loss(
    outputs: Array,
    reference: Array,
    positions: Sequence[int] | Array | None = None,
    reference_positions: Sequence[int] | Array | None = None,
    *,
    axis: CosineAxis = "paper",
) -> Array:
    """METHODS.md C2: the mean of 1 - cos(C*_i, C_cat_i) over the context tokens, a scalar in [0, 2].

    `outputs` and `reference` are the encoder outputs (L, d) or (B, L, d) of the two prompts; positions (n,) select the
    context tokens of each, None takes all. `axis="paper"`: one cosine a token, along its features. `"official"`: one
    cosine a feature, along the tokens, as the official code computes (METHODS.md 1.10 no. 1).
    Raises ValueError where the selected shapes differ or `axis` is unknown.
    """
    _require(axis, CosineAxis, "axis")
    ours, theirs = _context(outputs, positions, -2), _context(reference, reference_positions, -2)
    require_same_shape(outputs=ours, reference=theirs)
    return mean(cosine_distance(ours, theirs, axis=-1 if axis == "paper" else -2))


def attention_token_means(attention: Array) -> Array:
    """mu of METHODS.md C3 for one layer: the mean over heads and pixels, one value a token, (B, H, N, L) -> (B, L) in
    float32 or wider. A probe that keeps only these need not keep the maps."""
    if attention.ndim != 4:
        raise ValueError(f"attention (B, H, N, L) expected, got {tuple(attention.shape)}")
    return mean(attention, axis=(1, 2))


def attention_loss(
    layers: Sequence[Array],
    reference_layers: Sequence[Array],
    positions: Sequence[int] | Array | None = None,
    reference_positions: Sequence[int] | Array | None = None,
    *,
    mode: AttentionMode = "official",
) -> Array:
    """METHODS.md C3: how far the attention that each context token draws is from what it draws beside the class word.

    `layers` and `reference_layers` hold one array a cross-attention layer, maps (B, H, N, L) or their
    `attention_token_means` (B, L), of the same noisy latents under the two prompts; positions as in `embedding_loss`.
    `mode="official"`: squared difference of the means, averaged over tokens and over layers. `"paper"`: the means
    averaged over the layers (each layer weighs the same, METHODS.md 1.10 no. 4) and then squared, which by Jensen is
    never more. Both are *summed* over the batch, as lambda_attn was chosen (METHODS.md 1.10 no. 3). A scalar.
    Raises ValueError where there are no layers, counts or selected shapes differ, or `mode` is unknown.
    """
    _require(mode, AttentionMode, "mode")
    if len(layers) != len(reference_layers) or not layers:
        raise ValueError(f"as many layers for both prompts expected: {len(layers)} and {len(reference_layers)}")
    gaps = [
        _attention_gap(ours, theirs, positions, reference_positions)
        for ours, theirs in zip(layers, reference_layers, strict=True)
    ]
    batch = gaps[0].shape[0]
    if mode == "official":
        return sum(mean(gap**2) for gap in gaps) * (batch / len(gaps))
    return mean((sum(gaps) / len(gaps)) ** 2) * batch


def _attention_gap(
    ours: Array,
    theirs: Array,
    positions: Sequence[int] | Array | None,
    reference_positions: Sequence[int] | Array | None,
) -> Array:
    """mu(M_i) - mu(M'_i) of one layer, (B, n)."""
    ours, theirs = (m if m.ndim == 2 else attention_token_means(m) for m in (ours, theirs))
    ours, theirs = _context(ours, positions, -1), _context(theirs, reference_positions, -1)
    require_same_shape(attention=ours, reference=theirs)
    return widen(ours) - widen(theirs)


def _context(x: Array, positions: Sequence[int] | Array | None, axis: int) -> Array:
    return x if positions is None else take(x, positions, axis)


def _require(value: str, allowed: object, name: str) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(get_args(allowed))}")
