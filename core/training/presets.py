"""Recipes as data: what each source trains with, and what we make of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..models.families import is_narrow
from ..models.protocol import TextToImageModel
from .methods import IDENTIFIER, method_called
from .settings import CORE_TEMPLATES, Augmentation, TrainSettings

CLASSIC_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a photo of one {}",
    "a good photo of a {}",
    "a dark photo of the {}",
    "a photo of the {}",
)
"""Neutral photo prompts in the manner of CLIP's ImageNet templates, which textual inversion draws from."""

ADAMW: Mapping[str, Any] = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-2}
"""METHODS.md 1.4 no. 2; also what PyTorch does by default, written out because a recipe should not hang on that."""
FLIPS = Augmentation(rotation=0.0, rotate=0.0, flip=0.5, bank=4)
"""METHODS.md 2.6: horizontal flips and nothing else."""


@dataclass(frozen=True)
class Preset:
    """Values for `TrainSettings`, and whether the recipe wants CoRe and prior preservation. `source` says where the
    values come from. One that stands `alone` says nothing about other methods than its own. A recipe that names no
    optimizer takes AdamW with `ADAMW`."""

    name: str
    source: str
    values: Mapping[str, Any] = field(default_factory=dict)
    core: bool = False
    prior: bool = False
    alone: bool = False

    def __post_init__(self) -> None:
        usual = {} if "optimizer" in self.values else {"optimizer": "AdamW", "optimizer_options": ADAMW}
        object.__setattr__(self, "values", {**usual, **self.values})

    @property
    def method(self) -> str:
        """What it trains, of `METHODS`."""
        return self.values.get("method", "ti")

    def training(self, method: str) -> Preset:
        """The same numbers for another `method`. Raises ValueError where only one of the two is about weights, whose
        rates are of another kind, or the recipe stands alone."""
        theirs, ours = method_called(self.method), method_called(method)
        if theirs.trains_weights != ours.trains_weights or (self.alone and theirs != ours):
            raise ValueError(
                f"the recipe {self.name!r} is for {theirs.title}, and what is trained is {ours.title}: choose one "
                "of the two anew, or leave the recipe to the method"
            )
        return replace(self, values={**self.values, "method": method})

    def settings(self, class_word: str, **changes: Any) -> TrainSettings:
        """The recipe for `class_word`, with `changes` on top. Raises ValueError as `TrainSettings`."""
        return TrainSettings(**{"class_word": class_word, **self.values, **changes})


def without_core(settings: TrainSettings) -> TrainSettings:
    """`settings` where CoRe is not added: its rescaling window (METHODS.md C5) belongs to it, other norm rules stay."""
    return replace(settings, norm_mode="none") if settings.norm_mode == "core_window" else settings


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "CoRe stage 1 (paper)",
            "METHODS.md 1.4: 300 steps, batch 6, rate 5e-3 constant, rescaling in steps 120-180, the official code's "
            "augmentation",
            {
                "steps": 300,
                "batch": 6,
                "learning_rate": 5e-3,
                "norm_mode": "core_window",
                "templates": CORE_TEMPLATES,
                "augmentation": Augmentation(),
            },
            core=True,
        ),
        Preset(
            "Textual inversion (classic)",
            "METHODS.md 5, the SD 1.5 recipe of DreamBench++: 3,000 steps at 5e-4 times its batch; batch 4 and flip "
            "as in METHODS.md 2.6; templates written here",
            {
                "steps": 3000,
                "batch": 4,
                "learning_rate": 2e-3,
                "templates": CLASSIC_TEMPLATES,
                "augmentation": FLIPS,
            },
        ),
        Preset(
            "Fixed norm (DTI-like)",
            "METHODS.md 5.1: DTI's 400 steps of Riemannian SGD, batch 4, rate 0.01 times it (2.3 degrees a step), "
            "norm at the vocabulary's mean, its pull to the class word; with CoRe, which DTI does not have",
            {
                "steps": 400,
                "batch": 4,
                "learning_rate": 4e-2,
                "norm_mode": "dti",
                "templates": CORE_TEMPLATES,
            },
            core=True,
        ),
        Preset(
            "XTI (P+)",
            "METHODS.md 5, the port of P+: 500 steps, rate 5e-3, batch 8; a vector for each of the 16 layers",
            {
                "method": "xti",
                "steps": 500,
                "batch": 8,
                "learning_rate": 5e-3,
                "templates": CLASSIC_TEMPLATES,
            },
        ),
        Preset(
            "Fast",
            "our own, for XTI alone: half of CoRe's steps, at the rate of CoRe and of P+'s port. On the first bundled "
            "model XTI was as like the pictures after half of plain textual inversion's steps (0.865 and 0.854, three "
            "concepts and seeds), but kept less of the prompt (0.64 and 0.87): with MLM it kept as much (0.89) and "
            "was as like (0.854; docs/claims_first_model.md)",
            {
                "method": "xti",
                "steps": 150,
                "batch": 4,
                "learning_rate": 5e-3,
                "templates": CORE_TEMPLATES,
            },
            alone=True,
        ),
        Preset(
            "XTI (MLM paper)",
            "METHODS.md 2.6: 3,000 steps, batch 4, rate 2e-3 as textual inversion; 7 vectors, one a block",
            {
                "method": "xti-blocks",
                "steps": 3000,
                "batch": 4,
                "learning_rate": 2e-3,
                "templates": CLASSIC_TEMPLATES,
                "augmentation": FLIPS,
            },
        ),
        Preset(
            "Custom Diffusion (MLM paper)",
            'METHODS.md 2.6: "sks" and the class word, 500 steps, batch 4, rate 4e-5, prior preservation',
            {
                "method": "custom-diffusion",
                "identifier": IDENTIFIER,
                "steps": 500,
                "batch": 4,
                "learning_rate": 4e-5,
                "templates": CLASSIC_TEMPLATES,
                "augmentation": FLIPS,
            },
            prior=True,
        ),
        Preset(
            "DreamBooth, LoRA",
            "METHODS.md 5, the SDXL recipe of DreamBench++: 500 steps, batch 1, rate 5e-5; identifier and prior "
            "preservation as in METHODS.md 2.6; rank 4 is ours",
            {
                "method": "dreambooth-lora",
                "identifier": IDENTIFIER,
                "steps": 500,
                "batch": 1,
                "learning_rate": 5e-5,
                "templates": CORE_TEMPLATES,
                "augmentation": FLIPS,
            },
            prior=True,
        ),
        Preset(
            "Word and LoRA",
            "our own, for models on which a word alone learns little (METHODS.md 8): the word at CoRe's rate, a LoRA "
            "of rank 8 at 1e-4, 1,000 steps of batch 1; no prior preservation, since the class word is not trained on",
            {
                "method": "word-lora",
                "steps": 1000,
                "batch": 1,
                "learning_rate": 5e-3,
                "weight_rate": 1e-4,
                "templates": CORE_TEMPLATES,
                "augmentation": FLIPS,
            },
        ),
        Preset(
            "DreamBooth (MLM paper)",
            'METHODS.md 2.6: "sks" and the class word, all weights of UNet and text encoder (tables of tokens and '
            "positions stay), 1,000 steps, batch 1, rate 1e-6, prior preservation",
            {
                "method": "dreambooth",
                "identifier": IDENTIFIER,
                "steps": 1000,
                "batch": 1,
                "learning_rate": 1e-6,
                "templates": CORE_TEMPLATES,
                "augmentation": FLIPS,
            },
            prior=True,
        ),
        Preset(
            "CoRe stage 2 (paper)",
            "METHODS.md 1.5: all UNet weights, 1,000 steps, batch 4, rate 2e-6, no prior preservation",
            {
                "method": "refine-all",
                "steps": 1000,
                "batch": 4,
                "learning_rate": 2e-6,
                "templates": CORE_TEMPLATES,
                "augmentation": Augmentation(),
            },
        ),
        Preset(
            "CoRe stage 2, LoRA",
            "the paper's stage 2 (METHODS.md 1.5) with a LoRA of rank 4 at 1e-4 in place of all weights; rank and rate "
            "are ours",
            {
                "method": "refine",
                "steps": 500,
                "batch": 4,
                "learning_rate": 1e-4,
                "templates": CORE_TEMPLATES,
                "augmentation": Augmentation(),
            },
        ),
    )
}
"""By name, in the order in which to offer them. The first is the default."""

DEMO = Preset(
    "Demo model",
    "docs/tiny_model.md: chosen on the first bundled model, where plain textual inversion learned the concept and "
    "swallowed the prompt; no augmentation, because nothing in its world is ever tilted",
    {
        "steps": 200,
        "batch": 4,
        "vectors": 3,
        "learning_rate": 1e-2,
        "norm_mode": "core_window",
        "templates": CORE_TEMPLATES,
    },
    core=True,
)
"""For the bundled tiny model alone, so it is not among `PRESETS`, which suit any Stable Diffusion."""


TUNED = {
    "xti": {"steps": 100},
    "custom-diffusion": {"steps": 190, "weight_rate": 1e-3},
    "dreambooth-lora": {"steps": 150, "weight_rate": 1.25e-3, "rank": 8},
    "word-lora": {"steps": 100, "learning_rate": 5e-3, "weight_rate": 2.4e-3, "rank": 8},
    "refine": {"steps": 120, "weight_rate": 3.3e-3, "rank": 8},
}
"""What was chosen on development concepts: by `search` (docs/claims/search.json), XTI's by hand on the first model. The
second stage has twice the steps that were chosen for it in plain textual inversion's seconds (docs/claims/longer.json).
"""
UNTUNED = {
    "dreambooth": {"weight_rate": 1e-4},
    "refine-all": {"weight_rate": 1e-4},
}


def demo_preset(method: str) -> Preset:
    """The recipe of the bundled model for a method: `DEMO`'s but for what the method needs otherwise.

    Without prior preservation, as docs/claims.md measures them. To the bundled text encoder "sks house" is "house"
    (cosine 0.99), so class pictures pull against what is to be learned. Raises ValueError for an unknown method.
    """
    if method == DEMO.method:
        return DEMO
    identifier = method_called(method).identifier
    own: dict[str, Any] = {"method": method, **({"identifier": identifier} if identifier else {})}
    own |= TUNED.get(method, UNTUNED.get(method, {}))
    tuned = "steps and rates: docs/claims.md" + ("_first_model" if method == "xti" else "")
    source = f"{DEMO.source}; {tuned if method in TUNED else 'rates are ours, untuned'}"
    return Preset(f"{DEMO.name}: {method}", source, {**DEMO.values, **own}, core=DEMO.core)


def recipes(methods: Iterable[str] | None = None) -> dict[str, Preset]:
    """Every recipe by its name, the bundled model's last; with `methods` those for one of these."""
    wanted = None if methods is None else set(methods)
    every = {**PRESETS, DEMO.name: DEMO}
    return {name: recipe for name, recipe in every.items() if wanted is None or recipe.method in wanted}


def first_preset(method: str) -> Preset:
    """The first recipe for a method. Raises ValueError where there is none."""
    title = method_called(method).title
    for recipe in PRESETS.values():
        if recipe.method == method:
            return recipe
    raise ValueError(f"no recipe is for {title} ({method}): choose one by its name; there are {', '.join(PRESETS)}")


def suited_preset(model: TextToImageModel, method: str) -> Preset:
    """The recipe for a method that suits the model: the first, or the bundled model's for one as narrow as that."""
    return preset_for(is_narrow(model), method)


def preset_for(narrow: bool, method: str) -> Preset:
    """As `suited_preset`, of a model that is as `narrow` as the bundled one, or is not."""
    return demo_preset(method) if narrow else first_preset(method)
