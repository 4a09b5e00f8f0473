"""What can be added to a training, by name: nodes, commands and comparisons offer what is listed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...maths.context import LAMBDA_ATTN, LAMBDA_EMB
from ...maths.contrastive import LAMBDA_CONTRASTIVE, LAMBDA_NORM, NEIGHBOURS, TAU
from ...maths.mlm import LAMBDA_MLM, RHO
from ...models.protocol import TextToImageModel
from ...models.vocabulary import known_words
from ...prompts.sets import built_in_set
from .context import CoReRegularizer, recommended_weights
from .mlm import BATCH, MLMRegularizer, recommended_mlm
from .nearest_word import NearestTokenRegularizer
from .seam import Regularizer

PROMPTS = "inanimate"
"""CoRe's built-in set where nobody names another."""


@dataclass(frozen=True)
class Kind:
    """A regularizer as data. `make` gets the model, the name of the method (`METHODS`) that it is added to, and
    options; without any it makes what suits the two. `numbers` are the options that a person may want to set, with what
    to show for them. CoRe's rescaling window (METHODS.md C5) is for one that `keeps_window`."""

    title: str
    about: str
    make: Callable[..., Regularizer]
    numbers: Mapping[str, float] = field(default_factory=dict)
    keeps_window: bool = False


@dataclass(frozen=True)
class Added:
    """One regularizer of a training: its name in `REGULARIZERS`, and options for its maker."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """Raises ValueError that lists what there is."""
        if self.name not in REGULARIZERS:
            raise ValueError(f"no regularizer {self.name!r}; there are {', '.join(REGULARIZERS)}")
        return REGULARIZERS[self.name]

    def make(self, model: TextToImageModel, method: str) -> Regularizer:
        """A fresh one for a training of `method`. Raises ValueError as the regularizer."""
        return self.kind.make(model, method, **self.options)

    def fitting(self, model: TextToImageModel, method: str) -> Regularizer:
        """The same where it is for this model, which is asked before pictures are encoded; else ValueError."""
        made = self.make(model, method)
        if hasattr(made, "require_fit"):
            made.require_fit(model)
        return made


def make_core(
    model: TextToImageModel,
    method: str,
    *,
    prompts: Sequence[str] | None = None,
    embedding_weight: float | None = None,
    attention_weight: float | None = None,
    **options: Any,
) -> CoReRegularizer:
    """CoRe, at the weights recommended for model and method where they are not given."""
    weights = recommended_weights(model, method)
    return CoReRegularizer(
        prompts or built_in_set(PROMPTS).prompts,
        embedding_weight=weights.embedding if embedding_weight is None else embedding_weight,
        attention_weight=weights.attention if attention_weight is None else attention_weight,
        **options,
    )


def make_mlm(model: TextToImageModel, method: str, **options: Any) -> MLMRegularizer:
    """MLM, at the weight and batch recommended for model and method where they are not given."""
    return recommended_mlm(model, method=method, **options)


def make_nearest(model: TextToImageModel, method: str, **options: Any) -> NearestTokenRegularizer:
    """The pull towards the words that the model knows."""
    return NearestTokenRegularizer(**{"known": known_words(model), **options})


REGULARIZERS = {
    "core": Kind(
        "CoRe",
        "The words around the new word must mean, and draw as much attention, as they do around the class word.",
        make_core,
        {"embedding_weight": LAMBDA_EMB, "attention_weight": LAMBDA_ATTN},
        keeps_window=True,
    ),
    "mlm": Kind(
        "MLM",
        "Some words of a prompt are hidden, and it must stay possible to guess them beside the new word.",
        make_mlm,
        {"weight": LAMBDA_MLM, "rho": RHO, "batch": BATCH},
    ),
    "nearest": Kind(
        "nearest word",
        "Pulls the new word towards the real words that it is nearest to, and away from others.",
        make_nearest,
        {"weight": LAMBDA_CONTRASTIVE, "norm_weight": LAMBDA_NORM, "neighbours": NEIGHBOURS, "tau": TAU},
    ),
}
"""By the name that its losses begin with and the command line takes."""
