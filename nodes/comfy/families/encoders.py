"""The text encoders of a CLIP, whatever they are, as functions of their input embeddings.

A prompt goes through ComfyUI's own `encode_token_weights`, with rows in place of token ids, as `embedding:` puts them
there. Template, padding, masks and the layer that is read are therefore the family's own. Core sees a prompt between
BOS and EOT, which here stand for all that the template puts before and behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel, SDTokenizer

from ....core.models.low_rank import is_linear
from ....core.models.protocol import Encoding, fingerprint
from ..cancelling import hear_cancel
from ..weights import base_weight
from .blocks import numbered, text_blocks
from .gradients import differentiable
from .streaming import streamed

LONGEST = 256
"""Positions that core gives a prompt where ComfyUI sets no limit."""
PROBE = "dog"
"""Any word, to see what a template puts around it."""
SAMPLED_ROWS = 97
"""Every so many rows of a token table tell it from others; some have half a gigabyte."""


@dataclass(frozen=True)
class Parts:
    """One text encoder in a CLIP: the key of its tokens, its tokenizer, and its model's name in the CLIP's model."""

    key: str
    tokenizer: SDTokenizer
    attribute: str

    @property
    def name(self) -> str:
        """What it is called in embedding files."""
        return self.tokenizer.embedding_key


def parts_of(clip: Any) -> list[Parts]:
    """The text encoders of a CLIP that have weights, in the order of its tokenizer. Raises ValueError for none."""
    model, found = clip.patcher.model, []
    keys = set(clip.tokenizer.tokenize_with_weights(PROBE))
    for attribute, tokenizer in vars(clip.tokenizer).items():
        if not isinstance(tokenizer, SDTokenizer):
            continue
        short = attribute.removeprefix("clip_")
        key = attribute if attribute in keys else short
        name = attribute if hasattr(model, attribute) else short
        if key in keys and isinstance(getattr(model, name, None), SDClipModel):
            found.append(Parts(key, tokenizer, name))
    if not found:
        raise ValueError(f"{type(model).__name__} is a text encoder of a kind that this pack does not know")
    return found


def family_widths(clip: Any) -> dict[str, int]:
    """Width of the input embeddings of each text encoder of a CLIP, by its key in embedding files."""
    model = clip.patcher.model
    return {part.name: int(_embedding(model, part).weight.shape[1]) for part in parts_of(clip)}


def _embedding(model: Any, part: Parts) -> torch.nn.Module:
    return getattr(model, part.attribute).transformer.get_input_embeddings()


@dataclass(frozen=True)
class Frame:
    """What a family puts around a prompt: ids before it and behind it, and the padding on either side."""

    before: tuple[int, ...]
    behind: tuple[int, ...]


def frame_of(clip: Any, part: Parts) -> Frame:
    """What the CLIP's own tokenizer puts around a prompt."""
    (tokens, *_) = clip.tokenizer.tokenize_with_weights(PROBE)[part.key]
    ids, word = [pair[0] for pair in tokens], plain_ids(part.tokenizer, PROBE)
    start = next(at for at in range(len(ids)) if ids[at : at + len(word)] == word)
    before, behind = ids[:start], ids[start + len(word) :]
    pad = part.tokenizer.pad_token
    if part.tokenizer.pad_left:
        while before and before[0] == pad:
            before.pop(0)
    else:
        # CLIP pads with its own EOT, of which the first is read.
        least = 1 if part.tokenizer.end_token is not None else 0
        while len(behind) > least and behind[-1] == pad:
            behind.pop()
    return Frame(tuple(before), tuple(behind))


def plain_ids(tokenizer: SDTokenizer, text: str) -> list[int]:
    """The ids of a piece of text as ComfyUI's tokenizer cuts it, without special tokens."""
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    return list(tokenizer.tokenizer(text)["input_ids"][tokenizer.tokens_start : end])


@dataclass(frozen=True)
class Raw:
    """One prompt as it went through a text encoder: its `tokens` and what came `out`, both in ComfyUI's form, `first`,
    the position of the text there, and `count`, how many it has."""

    tokens: list[tuple[Any, float]]
    out: tuple[Any, ...]
    first: int
    count: int


class FamilyTextEncoder:
    """`TextEncoder` on one `SDClipModel`. What it says of a prompt is what ComfyUI says of it, bit for bit.

    `ready` brings weights where they are needed, told whether something learns in it. With `training` it is told
    whether a training is going on and with checkpointing, and whether its weights come block by block.
    """

    one_by_one = True
    """Prompts are encoded each by itself."""

    def __init__(
        self,
        clip: Any,
        patcher: Any,
        part: Parts,
        *,
        ready: Callable[[bool], None],
        device: torch.device,
        training: Callable[[], tuple[bool, bool, bool]] = lambda: (False, False, False),
    ) -> None:
        self.part, self.name, self.patcher = part, part.name, patcher
        self.module: SDClipModel = getattr(patcher.model, part.attribute)
        self.layer = clip.layer_idx
        self.frame = frame_of(clip, part)
        self._ready, self._device, self._training = ready, device, training
        embedding = self.module.transformer.get_input_embeddings()
        rows, self.width = (int(size) for size in embedding.weight.shape)
        tokenizer, frame = part.tokenizer, self.frame
        start, end = tokenizer.start_token, tokenizer.end_token
        # Two ids that no text has stand for what is around a prompt, where there is no such token.
        self.bos = int(start if start is not None else frame.before[0] if frame.before else rows - 1)
        self.eos = int(end if end is not None else frame.behind[0] if frame.behind else rows - 2)
        self.pad = int(tokenizer.pad_token)
        room = int(tokenizer.max_length) - len(frame.before) - len(frame.behind) + 2
        self.max_length = min(LONGEST, room)

    @cached_property
    def fingerprint(self) -> str:
        key = f"{self.part.attribute}.transformer." + _name_of(
            self.module.transformer, self.module.transformer.get_input_embeddings()
        )
        rows = base_weight(self.patcher, f"{key}.weight")[::SAMPLED_ROWS].float()
        return fingerprint({"table": rows}, name=self.name, max_length=self.max_length)

    @property
    def output(self) -> str:
        at = self.module.options_default[1] if self.layer is None else self.layer
        return f"layer {self.module.options_default[0] if at is None else at}"

    def tokenize(self, text: str) -> list[int]:
        """As ComfyUI cuts a piece of a prompt: behind a word that is typed as `embedding:` it drops the space."""
        return plain_ids(self.part.tokenizer, text.lstrip())

    def tokenize_word(self, words: str) -> list[int]:
        """Words as they stand in the middle of a sentence, behind a space; where a tokenizer puts one there itself, a
        second is a token of its own."""
        spaced, plain = (plain_ids(self.part.tokenizer, text) for text in (f" {words.strip()}", words.strip()))
        return plain if len(plain) < len(spaced) else spaced

    def token_text(self, token: int) -> str:
        return str(self.part.tokenizer.inv_vocab.get(int(token), ""))

    def table(self) -> torch.Tensor:
        embedding = self.module.transformer.get_input_embeddings()
        return embedding.weight if self._scale == 1 else self._scaled

    @cached_property
    def _scale(self) -> float:
        """What Gemma multiplies its rows with before anything reads them."""
        embedding = self.module.transformer.get_input_embeddings()
        with torch.inference_mode(False), torch.no_grad():
            rows = torch.tensor([[2, 3]], device=embedding.weight.device)
            ours, theirs = embedding(rows, out_dtype=torch.float32), embedding.weight[rows].float()
        share = (ours.norm() / theirs.norm()).item() if bool((theirs != 0).any()) else 1.0
        return 1.0 if abs(share - 1) < 1e-3 else share

    @cached_property
    def _scaled(self) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return self.module.transformer.get_input_embeddings().weight.detach().float() * self._scale

    def linear_layers(self) -> Mapping[str, torch.nn.Module]:
        """None: the text encoders of these families stay as they are."""
        return {}

    def weight_layers(self) -> Mapping[str, torch.nn.Module]:
        return {}

    def encode(self, inputs: torch.Tensor, ids: torch.Tensor) -> Encoding:
        hear_cancel()
        self._ready(inputs.requires_grad)
        self._choose_layer()
        ends = (ids == self.eos).int().argmax(dim=1).tolist()
        raw = tuple(self._one(row, end - 1) for row, end in zip(inputs, ends, strict=True))
        tokens = torch.stack([self._in_place(one, inputs.shape[1]) for one in raw])
        pooled = [one.out[1] for one in raw]
        whole = None if pooled[0] is None else torch.cat([one[:1] for one in pooled]).to(self._device)
        return Encoding(tokens.to(self._device), whole, raw=raw)

    def telling_weights(self) -> dict[str, str]:
        """Two weights that tell it from others of its kind, each with its key in the CLIP's model."""
        kept = [name for name, part in self.module.transformer.named_modules() if is_linear(part)]
        return {name: f"{self.part.attribute}.transformer.{name}.weight" for name in (kept[0], kept[-1])}

    def _choose_layer(self) -> None:
        self.module.reset_clip_options()
        if self.layer is not None:
            self.module.set_clip_options({"layer": self.layer})
        self.module.set_clip_options({"execution_device": self.patcher.load_device})

    def _one(self, row: torch.Tensor, count: int) -> Raw:
        device, tokenizer, frame = self.patcher.load_device, self.part.tokenizer, self.frame
        text = [(row[1 : 1 + count].to(device), 1.0)] if count else []
        tokens = [*((id, 1.0) for id in frame.before), *text, *((id, 1.0) for id in frame.behind)]
        length = len(frame.before) + count + len(frame.behind)
        padding = _padding(tokenizer, length)
        pads = [(tokenizer.pad_token, 1.0)] * padding
        first = len(frame.before) + (padding if tokenizer.pad_left else 0)
        tokens = [*pads, *tokens] if tokenizer.pad_left else [*tokens, *pads]
        with self._passing():
            return Raw(tokens, self.module.encode_token_weights([tokens]), first, count)

    @contextmanager
    def _passing(self) -> Iterator[None]:
        training, checkpointing, streaming = self._training()
        blocks = text_blocks(self.module.transformer)
        device = self._device if streaming else None
        again = training and torch.is_grad_enabled() and (checkpointing or streaming)
        with ExitStack() as stack:
            if training:
                stack.enter_context(differentiable())
            if streaming:
                stack.enter_context(streamed(self.module.transformer, blocks, self._device))
            if again or streaming:
                stack.enter_context(numbered(blocks, checkpointing=again, device=device))
            yield

    def _in_place(self, raw: Raw, length: int) -> torch.Tensor:
        """(L, d): what is said at BOS, the text and EOT, each where core has it; 0 where there is no such token."""
        said = raw.out[0][0]
        said = said.movedim(0, 1).flatten(1) if said.ndim == 3 else said
        first = raw.first - 1 if self.frame.before else raw.first
        end = raw.first + raw.count + (1 if self.frame.behind else 0)
        taken = said[first:end].float()
        front = 0 if self.frame.before else 1
        return torch.nn.functional.pad(taken, (0, 0, front, length - front - len(taken)))

    def places(self, raw: Raw) -> range:
        """Where BOS, text and EOT of a prompt are in ComfyUI's own output, one after another as core has them."""
        return range(raw.first - 1, raw.first + raw.count + 1)

    def reads(self) -> tuple[bool, bool]:
        """Whether BOS and EOT are tokens that it has."""
        return bool(self.frame.before), bool(self.frame.behind)


def _padding(tokenizer: SDTokenizer, length: int) -> int:
    """How many padding tokens ComfyUI's tokenizer adds to a prompt of `length` tokens."""
    added = tokenizer.min_padding or 0
    if tokenizer.pad_to_max_length:
        added = max(added, tokenizer.max_length - length)
    return max(added, (tokenizer.min_length or 0) - length)


def _name_of(root: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(name for name, part in root.named_modules() if part is wanted)


def family_encoders(clip: Any, patcher: Any, **options: Any) -> list[FamilyTextEncoder]:
    """All text encoders of a CLIP whose weights `patcher` holds."""
    return [FamilyTextEncoder(clip, patcher, part, **options) for part in parts_of(clip)]
