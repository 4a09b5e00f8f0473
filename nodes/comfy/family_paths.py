"""Two paths through joint attention while any stock sampler runs (METHODS.md 3.6).

Text and image are one sequence there. Each path has a text of its own, which goes through all blocks; the image is one:
what every attention gives to the image tokens is the blend of both paths. A row that has two paths is computed twice,
its second copy behind the batch, and what goes to the image is put into both copies.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from ...core.concept import Concept
from ...core.maths.dual_path import blend
from ...core.maths.similarity import nearest_rows
from ...core.models.dual_path import DualPath
from ...core.models.low_rank import DeltaHook, hooked
from .clip_session import encoders_of
from .families.attention import in_attention, tokens_of
from .families.blocks import joint_blocks, lists_of_blocks
from .families.facts import Family, family_of
from .two_paths import KEY, SoftPrompt, chunks_of, mark_the_others

IMAGE, JOINT = "image", "joint"
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "SD3": {"joint_blocks.*.x_block.attn.proj": IMAGE, "joint_blocks.*.x_block.attn2.proj": IMAGE},
    "Flux": {"double_blocks.*.img_attn.proj": IMAGE, "single_blocks.*.linear2": JOINT},
    "QwenImage": {"transformer_blocks.*.attn.to_out.0": IMAGE},
    "Lumina2": {"noise_refiner.*.attention.out": IMAGE, "layers.*.attention.out": JOINT},
}
"""The projections behind every attention that the image takes part in, by ComfyUI's class of the model: whether image
tokens alone go through it, or text tokens and then those of the image."""
OF_A_SOFT_PATH = 2
"""In `cond_or_uncond`, beside ComfyUI's 0 and 1: the second copies of rows."""


class JointPath(DualPath):
    """A `DualPath` whose blocks are those with joint attention, and its deltas those of any attention projection, by
    ComfyUI's names. Raises ValueError for deltas of other layers, which the image goes through as well."""

    def require_projections(self) -> None:
        others = [name for name in self.deltas if not in_attention(name)]
        if others:
            raise ValueError(f"two paths can differ in the attention only; the LoRA also changes {others[0]}")


def joint_count(model: Any) -> int:
    """The blocks with joint attention. Raises ValueError where it is not known what comes behind an attention."""
    family, denoiser, kind = family_of(model), model.model.diffusion_model, type(model.model).__name__
    count = len(joint_blocks(denoiser, family.blocks, family.apart))
    known = {block for _, (block, _) in _outputs(denoiser, kind, family)}
    if not known.issuperset(range(count)):
        raise ValueError(
            f"Dual Path does not know what comes behind each attention of {family.title}. Use Apply Concept, with "
            "strength_model for how much of the LoRA acts."
        )
    return count


def nearest_token(clip: Any, concept: Concept) -> tuple[Concept, str]:
    """The concept with the nearest row of the vocabulary in the place of each of its vectors, and these in words. It
    takes as many positions, so that both prompts are of one length."""
    rows, said = {}, []
    for name, encoder in encoders_of(clip).items():
        table, vectors = encoder.table().detach(), concept.vectors[name]
        found, _ = nearest_rows(
            vectors.to(table.device), table.float(), 1, exclude=[encoder.bos, encoder.eos, encoder.pad]
        )
        ids = found[:, 0].tolist()
        rows[name] = table[ids].float().cpu()
        said.append(f"{name}: {' '.join(encoder.token_text(token) for token in ids)}")
    return Concept(concept.name, concept.class_word, rows), ", ".join(said)


def with_joint_paths(model: Any) -> Any:
    """A clone of `model` that takes both paths for conditionings that have them."""
    clone = model.clone()
    if KEY not in clone.wrappers.get(WrappersMP.APPLY_MODEL, {}):
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, mark_the_others)
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _JointPaths(family_of(model)))
    return clone


@dataclass(frozen=True)
class _JointPaths:
    """Around one call of a model: SD3's denoiser itself can have nothing around it."""

    family: Family

    def __call__(
        self,
        run: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Any:
        options = dict(transformer_options or {})
        entries, batch = conditions.pop(KEY, None) or [], len(x)
        if not chunks_of(entries, options):
            return run(x, t, c_concat, c_crossattn, control, options, **conditions)
        denoiser = run.class_obj.diffusion_model
        count = len(joint_blocks(denoiser, self.family.blocks, self.family.apart))
        routes = _routes(chunks_of(entries, options), batch, count)
        if not any(route.changes for route in routes):
            return run(x, t, c_concat, c_crossattn, control, options, **conditions)
        order = [*range(batch), *(row for route in routes for row in route.second)]
        given = [_rows(value, order, batch) for value in (x, t, c_concat, c_crossattn, control)]
        conditions = _rows(conditions, order, batch)
        for route in routes:
            given[3] = route.with_context(given[3])
            if conditions.get("y") is not None:
                conditions["y"] = route.with_pooled(conditions["y"])
        tokens = tokens_of(denoiser, int(x.shape[-2]), int(x.shape[-1]))
        with _hooks(denoiser, type(run.class_obj).__name__, self.family, routes, tokens.padded):
            return run(*given, _told(options, order, batch, routes), **conditions)[:batch]


@dataclass(frozen=True)
class _Route:
    """The rows of one conditioning, `hard`, and where their second copies are, `soft`: the same rows where one path
    alone counts."""

    hard: slice
    soft: slice
    prompt: SoftPrompt
    alphas: Sequence[float]

    @property
    def doubled(self) -> bool:
        return self.hard != self.soft

    @property
    def second(self) -> range:
        return range(self.hard.start, self.hard.stop) if self.doubled else range(0)

    @property
    def reads_soft(self) -> bool:
        return self.doubled or self.alphas[0] == 1

    @property
    def modulated(self) -> slice | None:
        """The rows with the deltas."""
        soft = self.prompt.path.modulated == "soft"
        if self.doubled:
            return self.soft if soft else self.hard
        return self.hard if soft == self.reads_soft else None

    @property
    def changes(self) -> bool:
        """Whether anything is another than in the model as it came, with the hard prompt."""
        return self.reads_soft or (self.modulated is not None and bool(self.prompt.path.deltas))

    def with_context(self, context: torch.Tensor) -> torch.Tensor:
        if not self.reads_soft:
            return context
        changed = context.clone()
        changed[self.soft] = self.prompt.context.to(context)
        return changed

    def with_pooled(self, y: torch.Tensor) -> torch.Tensor:
        """The pooled prompt, which sways the image in all blocks, is one for both copies."""
        pooled = self.prompt.pooled
        if pooled is None or not self.reads_soft:
            return y
        changed, hard = y.clone(), y[self.hard]
        mixed = blend(pooled.to(y).expand_as(hard), hard, sum(self.alphas) / len(self.alphas))
        changed[self.hard] = changed[self.soft] = mixed
        return changed


def _routes(chunks: Sequence[tuple[slice, SoftPrompt]], batch: int, count: int) -> list[_Route]:
    found, behind = [], batch
    for rows, prompt in chunks:
        alphas = prompt.path.alphas(count)
        if set(alphas) <= {0.0} or set(alphas) <= {1.0}:
            found.append(_Route(rows, rows, prompt, alphas))
            continue
        second = slice(behind, behind + rows.stop - rows.start)
        found.append(_Route(rows, second, prompt, alphas))
        behind = second.stop
    return found


def _rows(value: Any, order: Sequence[int], batch: int) -> Any:
    """Tensors that hold one entry a row, in another order of rows; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value[list(order)] if value.ndim > 0 and len(value) == batch and len(order) > batch else value
    if isinstance(value, dict):
        return {key: _rows(one, order, batch) for key, one in value.items()}
    return [_rows(one, order, batch) for one in value] if type(value) is list else value


def _told(options: Mapping[str, Any], order: Sequence[int], batch: int, routes: Sequence[_Route]) -> dict[str, Any]:
    """Others count the rows of a batch by these marks, one for equally many rows each. Of the tensors there the sigmas
    alone are of the rows."""
    second, ours = sum(route.doubled for route in routes), {}
    if options.get("cond_or_uncond") is not None:
        ours["cond_or_uncond"] = [*options["cond_or_uncond"], *[OF_A_SOFT_PATH] * second]
    if options.get("uuids") is not None:
        ours["uuids"] = [*options["uuids"], *(uuid.uuid4() for _ in range(second))]
    if options.get("sigmas") is not None:
        ours["sigmas"] = _rows(options["sigmas"], order, batch)
    return {**options, **ours}


@contextmanager
def _hooks(
    denoiser: torch.nn.Module, kind: str, family: Family, routes: Sequence[_Route], image: int
) -> Iterator[None]:
    """The deltas of each path on its rows, and behind every attention the blend of what goes to the image."""
    layers = dict(denoiser.named_modules())
    with ExitStack() as stack:
        for route in routes:
            for name, delta in route.prompt.path.deltas.items() if route.modulated is not None else ():
                stack.enter_context(hooked(layers[name], DeltaHook(delta, route.modulated)))
        doubled = [route for route in routes if route.doubled]
        for name, place in _outputs(denoiser, kind, family) if doubled else ():
            block, tokens = place
            stack.enter_context(hooked(layers[name], _Blend(doubled, block, image if tokens == JOINT else None)))
        yield


def _outputs(denoiser: torch.nn.Module, kind: str, family: Family) -> Iterator[tuple[str, tuple[int | None, str]]]:
    """Each projection behind an attention by its name: which of the joint blocks it is in, None for blocks in which the
    image is alone, and what goes through it."""
    every, joint = lists_of_blocks(denoiser, family.blocks), joint_blocks(denoiser, family.blocks, family.apart)
    place = {id(every[number]): at for at, number in enumerate(sorted(joint))}
    names = {name: id(part) for name, part in denoiser.named_modules()}
    for name in names:
        for pattern, tokens in OUTPUTS.get(kind, {}).items():
            if fnmatchcase(name, pattern):
                yield name, (place.get(names[".".join(name.split(".")[:2])]), tokens)


@dataclass(frozen=True)
class _Blend:
    """A hook behind an attention's projection: METHODS.md D6 for the image tokens, the last `image` of the sequence, or
    all of them."""

    routes: Sequence[_Route]
    block: int | None
    image: int | None

    def __call__(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        first = 0 if self.image is None else output.shape[1] - self.image
        changed = output.clone()
        for route in self.routes:
            alpha = sum(route.alphas) / len(route.alphas) if self.block is None else route.alphas[self.block]
            mixed = blend(output[route.soft, first:], output[route.hard, first:], alpha)
            changed[route.hard, first:] = changed[route.soft, first:] = mixed
        return changed
