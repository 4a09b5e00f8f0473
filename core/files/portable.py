"""A LoRA as every program reads it: low rank, one rank, no scale but 1.

diffusers 0.42 scales all layers of a part alike, by the alpha of one of them, and without a word (findings/
diffusers_lora_alphas.sh); it refuses full differences, and a text encoder's q, k or v where no out_proj is changed. The
form made here says the same to programs that do all that right.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .errors import ConceptFileError

DOWN, UP, ALPHA, DIFF = ".lora_down.weight", ".lora_up.weight", ".alpha", ".diff"
ENDINGS = (DOWN, UP, ALPHA, DIFF)
PARTS = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
ONE = torch.ones(())
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def portable_lora(lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same change of every layer, exactly but for the rounding of one product.

    A full difference becomes a low-rank one of full rank: it times the identity. Ranks are filled up with zeros to the
    largest of their part (UNet, text encoder), scales go into `lora_up`.

    Raises:
        ConceptFileError: it changes biases or norms, or is of another kind than LoRA and full differences (DoRA, LoHa,
            LoKr, ...): what other programs leave out, some of them in silence.
    """
    factors = {stem: _factors(stem, part) for stem, part in _layers(lora).items()}
    for stem, (down, up) in list(factors.items()):
        out = _out_projection(stem)
        if out and out not in factors:
            factors[out] = torch.zeros_like(down), torch.zeros_like(up)
    portable = {}
    for stem, (down, up) in factors.items():
        rank = max(len(other) for name, (other, _) in factors.items() if _part(name) == _part(stem))
        portable[stem + DOWN], portable[stem + UP] = _filled(down, rank, 0), _filled(up, rank, 1)
        portable[stem + ALPHA] = torch.tensor(float(rank))
    return portable


def _layers(lora: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    layers: dict[str, dict[str, torch.Tensor]] = {}
    wrong = []
    for key, value in lora.items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        if ending is None or not key.startswith(PARTS) or (ending == DIFF and value.ndim not in (2, 4)):
            wrong.append(key)
        else:
            layers.setdefault(key.removesuffix(ending), {})[ending] = value
    if wrong:
        raise ConceptFileError(
            f"{len(wrong)} of the change's {len(lora)} tensors, such as {wrong[0][:120]!r}, are norms, biases or of "
            "another kind than LoRA: ComfyUI applies them, and other programs would leave them out"
        )
    return layers


def _factors(stem: str, part: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """down (r, in, ...) and up (out, r, ...) with their scale, float32."""
    if set(part) == {DIFF}:
        return _exactly(part[DIFF].float())
    if set(part) - {ALPHA} != {DOWN, UP}:
        raise ConceptFileError(f"the change of {stem[:120]} is not whole: it has {', '.join(sorted(part))}")
    down, up = part[DOWN].float(), part[UP].float()
    if down.ndim not in (2, 4) or up.ndim != down.ndim or up.shape[1] != len(down) or part.get(ALPHA, ONE).numel() != 1:
        shapes = ", ".join(f"{ending[1:]} {tuple(value.shape)}" for ending, value in sorted(part.items()))
        raise ConceptFileError(f"the parts of the change of {stem[:120]} do not fit together: {shapes}")
    scale = float(part[ALPHA]) / len(down) if ALPHA in part else 1.0
    return down, up * scale


def _exactly(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A full difference as up @ down where one of them is the identity."""
    outputs, inputs = change.shape[:2]
    if change.ndim == 4:
        return change, torch.eye(outputs)[:, :, None, None]
    return (change, torch.eye(outputs)) if outputs <= inputs else (torch.eye(inputs), change)


def _out_projection(stem: str) -> str | None:
    """The stem of out_proj beside a text encoder's q, k or v."""
    ending = next((name for name in PROJECTIONS if stem.endswith(name)), None)
    return None if ending is None else stem.removesuffix(ending) + "out_proj"


def _part(stem: str) -> str:
    return next(part for part in PARTS if stem.startswith(part))


def _filled(value: torch.Tensor, rank: int, side: int) -> torch.Tensor:
    """`value` with zeros on its rank's side up to `rank`."""
    lacking = list(value.shape)
    lacking[side] = rank - lacking[side]
    return torch.cat([value, value.new_zeros(lacking)], dim=side).contiguous() if lacking[side] else value.contiguous()


def not_everywhere(lora: Mapping[str, torch.Tensor]) -> str | None:
    """Why not every program reads these tensors as they are; None where each does. `portable_lora` mends most."""
    try:
        portable = portable_lora(lora)
    except ConceptFileError as error:
        return str(error)
    if any(key.endswith(DIFF) for key in lora):
        return "it holds full differences, which diffusers refuses and others leave out"
    if any(not torch.equal(value, lora[key].float()) for key, value in portable.items() if key in lora):
        return "its layers have different scales or ranks, and diffusers scales all alike"
    if any(key not in lora for key in portable if not key.endswith(ALPHA)):
        return "it changes a text encoder's q, k or v without out_proj, which diffusers refuses"
    return None
