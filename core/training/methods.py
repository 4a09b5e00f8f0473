"""What can be trained, by paper: which part of the word, and which weights of UNet and text encoder, in which form.

A method is data. `word.Word` and `weights.TrainableWeights` make of it what the learner moves; the loop knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..maths.mlm import LAMBDA_MLM

WordPart = Literal["vectors", "layers", "blocks", "nothing"]
Layers = Literal["none", "keys and values", "attention", "all"]


@dataclass(frozen=True)
class Method:
    """`word` says what of it is learned: its vectors, vectors of its own for every cross-attention layer or for every
    block of them (XTI), or nothing. `unet` and `text_encoder` say which weights are. "all" of a text encoder are the
    linear layers and layer norms of its transformer: the token table and the position embeddings stay as they are, and
    so does SDXL's projection of the pooled output. `rank` is that of their change where a training does not choose one,
    which linear layers alone can have; 0 lets the whole weight change. With `identifier` the word is that rare word
    before the class word. One that `refines` goes on with a concept that was learned before, as CoRe's second stage
    does, and `short` is what tells it from the others that do. `mlm_weight` is the lambda of MLM with it, on encoders
    of Stable Diffusion's width.
    """

    title: str
    word: WordPart
    unet: Layers = "none"
    text_encoder: Layers = "none"
    rank: int = 0
    source: str = ""
    identifier: str = ""
    refines: bool = False
    short: str = ""
    mlm_weight: float = LAMBDA_MLM

    @property
    def learns_word(self) -> bool:
        return self.word != "nothing"

    @property
    def trains_weights(self) -> bool:
        return self.unet != "none" or self.text_encoder != "none"

    @property
    def learns_copies(self) -> bool:
        """Whether a prompt is encoded once for every vector that the word has for a layer or a block (XTI)."""
        return self.word in ("layers", "blocks")


XTI_LAMBDA, WEIGHTS_LAMBDA = 2.5e-4, 5e-4
"""METHODS.md 2.8 no. 5: the middle of what the paper tried with XTI, and with Custom Diffusion and DreamBooth."""
IDENTIFIER = "sks"
"""METHODS.md 2.6: the rare word of Custom Diffusion and DreamBooth."""

METHODS = {
    "ti": Method("textual inversion", "vectors", source="METHODS.md 2.6"),
    "xti": Method("XTI: a vector for every layer", "layers", source="P+, METHODS.md 2.6", mlm_weight=XTI_LAMBDA),
    "xti-blocks": Method(
        "XTI: a vector for every block", "blocks", source="7 for SD 1 and 2, METHODS.md 2.6", mlm_weight=XTI_LAMBDA
    ),
    "custom-diffusion": Method(
        "Custom Diffusion",
        "vectors",
        unet="keys and values",
        source="word, keys and values, METHODS.md 2.6",
        identifier=IDENTIFIER,
        mlm_weight=WEIGHTS_LAMBDA,
    ),
    "dreambooth-lora": Method(
        "DreamBooth, LoRA",
        "nothing",
        unet="attention",
        text_encoder="attention",
        rank=4,
        source="METHODS.md 2.6, 5",
        identifier=IDENTIFIER,
        mlm_weight=WEIGHTS_LAMBDA,
    ),
    "dreambooth": Method(
        "DreamBooth, all weights",
        "nothing",
        unet="all",
        text_encoder="all",
        source="METHODS.md 2.6",
        identifier=IDENTIFIER,
        mlm_weight=WEIGHTS_LAMBDA,
    ),
    "refine": Method(
        "second stage",
        "nothing",
        unet="attention",
        rank=4,
        source="METHODS.md 1.5, 6 no. 4",
        refines=True,
        short="LoRA",
    ),
    "word-lora": Method(
        "word and LoRA together",
        "vectors",
        unet="attention",
        rank=8,
        source="METHODS.md 8",
        mlm_weight=WEIGHTS_LAMBDA,
    ),
    "refine-all": Method(
        "second stage, all weights", "nothing", unet="all", source="METHODS.md 1.5", refines=True, short="all weights"
    ),
}
"""By the name that the command line takes; the first is the default."""


def method_called(name: str) -> Method:
    """Raises ValueError that lists the methods."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def first_stages() -> dict[str, str]:
    """What can be trained from a class word: title -> name."""
    return {method.title: name for name, method in METHODS.items() if not method.refines}


def second_stages() -> dict[str, str]:
    """What can be trained of a concept that was learned before: the short title, where there is one -> name."""
    return {method.short or method.title: name for name, method in METHODS.items() if method.refines}


def chosen_layers(names: Sequence[str], which: Layers) -> list[str]:
    """Which of the UNet's or a text encoder's layers, by diffusers' or transformers' names, `which` means."""
    wanted = {
        "none": (),
        "keys and values": ("attn2.to_k", "attn2.to_v"),
        "attention": (".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj"),
        "all": ("",),
    }[which]
    return [name for name in names if name.endswith(wanted)] if wanted else []
