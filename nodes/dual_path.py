"""Two paths through every attention while any stock sampler runs (METHODS.md 3.6).

What is blended travels with the conditioning, under a key of our own, so that only the rows of that conditioning have
two paths; negative prompts, areas and other people's conditionings pass as in a plain model. Hooks are on the model's
layers for the length of one UNet pass.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import comfy.lora
import comfy.sd
import torch
from comfy.conds import CONDRegular
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io, ui

from ..core.concept import Concept
from ..core.inspection.hard_token import hard_words
from ..core.maths.dual_path import ALPHA, blend
from ..core.models.dual_path import DualPath, paths_in
from ..core.models.lora import TEXT_STEMS, from_lora
from ..core.models.low_rank import Delta
from ..core.models.protocol import Conditioning
from .comfy_attention import cross_attention_layers, diffusers_names
from .comfy_text import text_encoders
from .concept_lora import stem_of
from .concept_tokenizer import leading_name, with_concept
from .sockets import CATEGORY, PREFIX, ConceptSocket

KEY = "contextual_inversion_dual_path"
UNET = "lora_unet_"
EMBEDDING = "embedding:"


class DualPathNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=PREFIX + "DualPath",
            display_name="Dual Path",
            category=CATEGORY,
            description="Blends two readings of one prompt in every attention layer: the learned word with its LoRA "
            "(soft path), and the nearest real word with the untouched model (hard path). More of the prompt survives.",
            inputs=[
                io.Model.Input("model", tooltip="The model without the concept: this node adds its LoRA itself."),
                io.Clip.Input("clip", tooltip="Its text encoder. It need not know the word yet."),
                ConceptSocket.Input("concept", tooltip="From TrainConcept, LoadConcept or PredictConcept."),
                io.String.Input(
                    "prompt",
                    default="a photo of <my-concept> in the snow",
                    multiline=True,
                    tooltip="A prompt with the word, as <name> or embedding:name.",
                ),
                io.Float.Input(
                    "alpha",
                    default=ALPHA,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the soft path: 0 is the plain model with the real word, 1 the learned word "
                    "with its LoRA.",
                ),
                io.Combo.Input(
                    "modulated_path",
                    options=["soft", "hard"],
                    default="soft",
                    tooltip="Which path has the LoRA. soft is the paper; hard is the other pairing.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="From this part of the sampling on there are two paths; before it the hard one alone.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Until this part of the sampling there are two paths; after it the hard one alone.",
                ),
                io.String.Input(
                    "alpha_per_block",
                    default="",
                    optional=True,
                    tooltip="In place of alpha: one number for each attention block from input to output, separated by "
                    "commas (SD 1 and 2 have 16). Empty: alpha everywhere.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler. Without the conditioning beside it, it "
                                "is the model that came in."),
                io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler's positive input. In a "
                                       "model without two paths it is the prompt with the real word."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        concept: Concept,
        prompt: str,
        alpha: float,
        modulated_path: str,
        start_percent: float,
        end_percent: float,
        alpha_per_block: str = "",
    ) -> io.NodeOutput:
        if concept.layer_vectors:
            raise ValueError(f"{concept.name!r} has a vector for every layer, which two paths cannot blend.")
        if start_percent > end_percent:
            raise ValueError(f"start_percent ({start_percent}) is after end_percent ({end_percent}).")
        words = concept.hard_token or hard_words(encoders_of(clip), concept.vectors)
        hard_prompt = with_words(prompt, concept.name, words)
        lora = known_names(model, concept.lora or {})
        path = DualPath(
            Conditioning(torch.empty(0)),
            unet_deltas(model, lora),
            blocks_of(alpha_per_block, alpha, model),
            modulated_path,
        )
        soft_clip = with_text_lora(with_concept(clip, concept), lora)
        hard, soft = (
            c.encode_from_tokens_scheduled(c.tokenize(p)) for c, p in ((clip, hard_prompt), (soft_clip, prompt))
        )
        sampling = model.get_model_object("model_sampling")
        window = tuple(float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
        conditioning = [two_paths(h, s, path, window) for h, s in zip(hard, soft, strict=True)]
        said = f"Hard path: {hard_prompt!r}."
        if not path.deltas:
            said += (
                f" {concept.name!r} has no LoRA for the model: both paths have its weights and differ in the prompt."
            )
        logging.info("Dual Path: %s", said)
        return io.NodeOutput(with_two_paths(model), conditioning, ui=ui.PreviewText(said))


def encoders_of(clip: Any) -> dict[str, Any]:
    """The text encoders of a CLIP by name. Raises ValueError where it is no CLIP of SD."""
    found = text_encoders(clip.patcher, clip.tokenizer, layer=None, pooled=None, ready=lambda: None)
    return {encoder.name: encoder for encoder in found}


def with_words(prompt: str, name: str, words: str) -> str:
    """`prompt` with `words` wherever the word stands, as `<name>` or `embedding:name`.

    Raises ValueError that shows what to type where the word does not stand in it.
    """
    found = prompt.replace(f"<{name}>", words)
    pieces = re.split(rf"(?:(?<=\s)|(?<=^)|(?<=\()){EMBEDDING}", found)
    for index, piece in enumerate(pieces[1:], 1):
        known = leading_name(piece, {name: None})
        pieces[index] = EMBEDDING + piece if known is None else words + piece[len(known) :]
    found = "".join(pieces)
    if found == prompt:
        raise ValueError(f"The prompt does not hold the word. Type <{name}> or {EMBEDDING}{name} where it belongs.")
    return found


def blocks_of(listed: str, alpha: float, model: Any) -> float | tuple[float, ...]:
    """alpha, or the numbers of `listed`. Raises ValueError where one is none, or there are not as many as blocks."""
    parts = [part for part in re.split(r"[\s,;]+", listed.strip()) if part]
    if not parts:
        return alpha
    try:
        values = tuple(float(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"alpha_per_block takes numbers separated by commas, not {listed!r}.") from error
    blocks = len(cross_attention_layers(model.model.diffusion_model, {}))
    if len(values) != blocks:
        raise ValueError(f"This model has {blocks} attention blocks; alpha_per_block has {len(values)} numbers.")
    return values


# The concept's LoRA


def known_names(model: Any, lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA under our own names of layers, whichever of the names that ComfyUI knows it has."""
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    names = diffusers_names(model.model.model_config.unet_config)
    renamed = {}
    for key, value in lora.items():
        stem = stem_of(key)
        module = str(targets.get(stem, "")).removeprefix("diffusion_model.").removesuffix(".weight")
        ours = UNET + names[module].replace(".", "_") if module in names else stem
        renamed[ours + key.removeprefix(stem)] = value
    return renamed


def unet_deltas(model: Any, lora: Mapping[str, torch.Tensor]) -> dict[str, Delta]:
    """The deltas of the UNet in a LoRA. Raises ValueError where it is for another model or of another kind."""
    mine = {key: value for key, value in lora.items() if not key.startswith(TEXT_STEMS)}
    return from_lora(_Unet(model), mine)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Unet:
    """As much of a model as `from_lora` asks for."""

    patcher: Any
    text_encoders: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return type(self.patcher.model.model_config).__name__

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        unet = self.patcher.model.diffusion_model
        names = diffusers_names(self.patcher.model.model_config.unet_config)
        return {names[name]: part for name, part in unet.named_modules() if name in names}


def with_text_lora(clip: Any, lora: Mapping[str, torch.Tensor]) -> Any:
    """`clip` with what the LoRA changes in text encoders: the soft path's own."""
    mine = {key: value for key, value in lora.items() if key.startswith(TEXT_STEMS)}
    return comfy.sd.load_lora_for_models(None, clip, mine, 0.0, 1.0)[1] if mine else clip


# What travels with the conditioning


@dataclass(frozen=True)
class SoftPrompt:
    """The soft path of one conditioning: (1, L, D), its pooled output where the model has one, and when it counts."""

    context: torch.Tensor
    pooled: torch.Tensor | None
    path: DualPath
    window: tuple[float, float]
    """The sigmas between which there are two paths."""

    def counts(self, sigma: float) -> bool:
        start, end = self.window
        return end <= sigma <= start


class SoftCondition(CONDRegular):
    """The soft prompt of each row of a batch, or None where a row has none; batches with any other of its kind."""

    cond: tuple[SoftPrompt | None, int]

    def process_cond(self, batch_size: int, **_: Any) -> SoftCondition:
        return self._copy_with((self.cond[0], batch_size))

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, SoftCondition)

    def concat(self, others: Sequence[SoftCondition]) -> list[tuple[SoftPrompt | None, int]]:
        return [self.cond, *(other.cond for other in others)]

    def size(self) -> list[int]:
        return [1] if self.cond[0] is None else [self.cond[1], *self.cond[0].context.shape[1:]]


def two_paths(hard: list[Any], soft: list[Any], path: DualPath, window: tuple[float, float]) -> list[Any]:
    """One entry of a CONDITIONING: the hard prompt, and beside it the soft one."""
    (hard_tokens, options), (soft_tokens, soft_options) = hard, soft
    if soft_tokens.shape[1] != hard_tokens.shape[1]:
        # A token more or less may need another chunk of 77. Attention does not change when all tokens are repeated.
        tokens = torch.lcm(torch.tensor(soft_tokens.shape[1]), torch.tensor(hard_tokens.shape[1]))
        hard_tokens, soft_tokens = (x.repeat(1, int(tokens) // x.shape[1], 1) for x in (hard_tokens, soft_tokens))
    prompt = SoftPrompt(soft_tokens, soft_options.get("pooled_output"), path, window)
    ours = {**options.get("model_conds", {}), KEY: SoftCondition((prompt, 1))}
    return [hard_tokens, {**options, "model_conds": ours}]


# What the model does with it


def with_two_paths(model: Any) -> Any:
    """A clone of `model` that takes both paths for conditionings that have them."""
    clone = model.clone()
    if KEY not in clone.wrappers.get(WrappersMP.DIFFUSION_MODEL, {}):
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _mark_the_others)
        names = diffusers_names(model.model.model_config.unet_config)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _TwoPaths(names))
    return clone


def _mark_the_others(run: Any, model: Any, conds: Sequence[Any], *rest: Any, **keywords: Any) -> Any:
    """Only conditionings with the same keys share a batch: the others get ours, with nothing in it."""
    everything = [cond for part in conds if part is not None for cond in part]
    if not any(KEY in cond["model_conds"] for cond in everything):
        return run(model, conds, *rest, **keywords)
    nothing = SoftCondition((None, 1))
    marked = [
        None if part is None else [{**cond, "model_conds": {KEY: nothing, **cond["model_conds"]}} for cond in part]
        for part in conds
    ]
    return run(model, marked, *rest, **keywords)


@dataclass(frozen=True)
class _TwoPaths:
    """Around one pass of the UNet, whose layers have diffusers' `names` by ComfyUI's."""

    names: Mapping[str, str]
    found: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary)

    def __call__(
        self,
        run: Any,
        x: torch.Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Any:
        options = dict(transformer_options or {})
        chunks = _chunks(conditions.pop(KEY, None) or [], options)
        if not chunks:
            return run(x, timesteps, context, y, control, options, **conditions)
        linear, layers = self._layers(run.class_obj)
        with ExitStack() as stack:
            for rows, soft in chunks:
                given = Conditioning(soft.context.to(x.device, x.dtype))
                stack.enter_context(paths_in(linear, layers, replace(soft.path, soft=given, rows=rows)))
                if y is not None and soft.pooled is not None:
                    y = _with_pooled(y, soft, rows)
            options = _beside_others(options, x.shape[0], [rows for rows, _ in chunks])
            return run(x, timesteps, context, y, control, options, **conditions)

    def _layers(self, unet: Any) -> tuple[dict[str, torch.nn.Module], list[str]]:
        """The UNet's linear layers and its cross-attentions, by name; copies of a model have modules of their own."""
        if unet not in self.found:
            parts = {self.names.get(name, name): part for name, part in unet.named_modules()}
            linear = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Linear)}
            self.found[unet] = linear, [layer.name for layer in cross_attention_layers(unet, self.names)]
        return self.found[unet]


def _chunks(
    entries: Sequence[tuple[SoftPrompt | None, int]], options: Mapping[str, Any]
) -> list[tuple[slice, SoftPrompt]]:
    """The rows that have two paths now."""
    sigma = options.get("sigmas")
    found, start = [], 0
    for soft, count in entries:
        if soft is not None and (sigma is None or soft.counts(float(sigma.flatten()[0]))):
            found.append((slice(start, start + count), soft))
        start += count
    return found


def _with_pooled(y: torch.Tensor, soft: SoftPrompt, rows: slice) -> torch.Tensor:
    """SDXL's vector begins with the pooled prompt, which belongs to no attention layer: blended with the mean alpha."""
    width = soft.pooled.shape[-1]  # type: ignore[union-attr]
    hard = y[rows, :width]
    mixed = blend(soft.pooled.to(y).expand(len(hard), -1), hard, soft.path.mean_alpha)  # type: ignore[union-attr]
    changed = torch.cat([mixed, y[rows, width:]], dim=1)
    return torch.cat([y[: rows.start], changed, y[rows.stop :]])


def _beside_others(options: dict[str, Any], batch: int, rows: Sequence[slice]) -> dict[str, Any]:
    """Attention replacements of other nodes know the batch as it was: they run once for each path."""
    replacements = options.get("patches_replace", {})
    ours = {
        kind: {key: _once_a_path(theirs, batch, rows) for key, theirs in replacements.get(kind, {}).items()}
        for kind in ("attn1", "attn2")
    }
    return {**options, "patches_replace": {**replacements, **{kind: found for kind, found in ours.items() if found}}}


def _once_a_path(theirs: Any, batch: int, rows: Sequence[slice]) -> Any:
    def replacement(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        if len(q) == batch:
            return theirs(q, k, v, extra)
        hard = theirs(q[:batch], k[:batch], v[:batch], extra)
        soft = theirs(*(_in_place(x, batch, rows) for x in (q, k, v)), extra)
        return torch.cat([hard, *(soft[part] for part in rows)])

    return replacement


def _in_place(x: torch.Tensor, batch: int, rows: Sequence[slice]) -> torch.Tensor:
    """The batch with the soft rows, which come behind it, where they belong."""
    whole, start = x[:batch].clone(), batch
    for part in rows:
        count = part.stop - part.start
        whole[part] = x[start : start + count]
        start += count
    return whole
