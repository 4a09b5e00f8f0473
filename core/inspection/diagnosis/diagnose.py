"""What a learned word does to a prompt, in figures: against its class word and against another word for the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from einops import rearrange

from ...concept import Concept
from ...maths.similarity import cosine, nearest_rows
from ...models.lora import from_lora
from ...models.low_rank import apply_deltas
from ...models.protocol import ImageSize, TextEncoder, TextToImageModel
from ...models.words import layer_vectors_of
from ...prompts.phrases import checked_phrase, require_tokens
from ...prompts.tokens import input_embeddings, tokenize_prompt
from .context_similarity import ContextProbe, context_similarity, require_words, seen_vectors
from .symmetric_kl import Filling, Sampling, skl_of_each

NEIGHBOURS = 5
END_OF_WORD = "</w>"


@dataclass(frozen=True)
class DiagnosedWord:
    """What fills the prompts: a concept's `vectors` (encoder name -> (n, d)), with its `layers` and `lora` where it has
    them, or plain `words`."""

    label: str
    vectors: Mapping[str, torch.Tensor] | None = None
    words: str | None = None
    layers: Mapping[str, torch.Tensor] | None = None
    lora: Mapping[str, torch.Tensor] | None = None

    @classmethod
    def of(cls, concept: Concept, label: str) -> DiagnosedWord:
        """All of a concept."""
        return cls(label, concept.vectors, None, concept.layer_vectors, concept.lora)


@dataclass(frozen=True)
class PromptFigures:
    """METHODS.md 2.7 of one prompt; SKL is a mean over its pictures, None where none were drawn."""

    prompt: str
    word: str
    sim1: float
    sim2: float
    skl: float | None = None
    skl_normalised: float | None = None


@dataclass(frozen=True)
class Embedding:
    """One vector: its length, the share of vocabulary words that are shorter, and its nearest words with cosines."""

    encoder: str
    norm: float
    shorter: float
    nearest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class SubjectFigures:
    """Of one subject. `means` has sim1, sim2, skl and skl_normalised over the prompts. `cosines` are CoRe's figure 2:
    for each context token of the first prompt, cos of its output with that beside the class word."""

    label: str
    prompts: tuple[PromptFigures, ...]
    means: Mapping[str, float]
    cosines: tuple[tuple[str, float], ...]
    embeddings: tuple[Embedding, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """`vocabulary` maps an encoder to the mean, 5th and 95th percentile of its table's norms."""

    name: str
    class_word: str
    subjects: tuple[SubjectFigures, ...]
    vocabulary: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@torch.no_grad()
def diagnose(
    model: TextToImageModel,
    concept: Concept,
    probes: Sequence[ContextProbe],
    *,
    other: Concept | None = None,
    class_word: str | None = None,
    size: ImageSize | None = None,
    images: int = 1,
    steps: int = 25,
    guidance: float = 4.0,
    seed: int = 0,
) -> Diagnosis:
    """Compare a concept with its class word and, if given, with an `other` concept (a plain textual inversion, say).

    `images` pictures a prompt are sampled for SKL, with the same seeds for all subjects; 0 leaves SKL out. A concept's
    LoRA is in force for that concept alone; `model` is the one that it was trained on.

    Raises ValueError where there is no class word, no probe, a probe's word is not in its prompt, or a concept is of
    another model.
    """
    class_word = class_word or concept.class_word
    if not class_word.strip():
        raise ValueError("this concept does not say its class word: give the ordinary word for the thing")
    class_word = checked_phrase(class_word)
    require_tokens(model.text_encoders.values(), class_word)
    for one in filter(None, (concept, other)):
        layer_vectors_of(one, model)
    subjects = [DiagnosedWord.of(concept, concept.name)]
    if other is not None:
        label = other.name if other.name != concept.name else f"{other.name} (other)"
        subjects.append(DiagnosedWord.of(other, label))
    subjects.append(DiagnosedWord(f"{class_word} (class word)", words=class_word))
    for subject in subjects:  # before minutes of sampling
        require_words(model, probes, vectors=subject.vectors, words=subject.words)
    sampling = Sampling(size, images, steps, guidance, seed)
    return Diagnosis(
        name=concept.name,
        class_word=class_word,
        subjects=tuple(_figures(model, subject, class_word, probes, sampling) for subject in subjects),
        vocabulary={name: vocabulary_norms(encoder) for name, encoder in model.text_encoders.items()},
        settings={"images": images, "steps": steps, "guidance": guidance, "seed": seed},
    )


def context_cosines(
    encoder: TextEncoder, template: str, subject: DiagnosedWord, class_word: str
) -> tuple[tuple[str, float], ...]:
    """CoRe's figure 2, left: cos(C*_i, C^cat_i) for each context token i of one filled template, BOS to the first EOT.

    1 everywhere for the class word itself; the tokens before the concept are 1 for any, since the encoder is causal.
    Of a concept with vectors for every layer the mean over the layers.
    """
    rows = None if subject.vectors is None else int(subject.vectors[encoder.name].shape[0])
    ours = tokenize_prompt(encoder, template, rows=rows, words=subject.words)
    theirs = tokenize_prompt(encoder, template, words=class_word)
    seen = seen_vectors(encoder.name, subject.vectors, subject.layers)
    outputs = [encoder.encode(*input_embeddings(encoder, [ours], own)).tokens[0][list(ours.context)] for own in seen]
    reference = encoder.encode(*input_embeddings(encoder, [theirs], None)).tokens[0][list(theirs.context)]
    cosines = torch.stack([cosine(output, reference) for output in outputs]).mean(0)
    names = [_readable(encoder, ours.ids[position]) for position in ours.context]
    return tuple(zip(names, cosines.tolist(), strict=True))


def embeddings(encoder: TextEncoder, vectors: torch.Tensor) -> tuple[Embedding, ...]:
    """Norms and nearest vocabulary words of vectors (n, d)."""
    table = encoder.table().detach().float()
    vectors = vectors.to(table)
    rows, cosines = nearest_rows(vectors, table, NEIGHBOURS, exclude=sorted({encoder.bos, encoder.eos, encoder.pad}))
    norms, own = table.norm(dim=1), vectors.norm(dim=1)
    return tuple(
        Embedding(
            encoder=encoder.name,
            norm=float(own[i]),
            shorter=float((norms < own[i]).float().mean()),
            nearest=tuple(
                (_readable(encoder, token), value)
                for token, value in zip(rows[i].tolist(), cosines[i].tolist(), strict=True)
            ),
        )
        for i in range(len(vectors))
    )


def vocabulary_norms(encoder: TextEncoder) -> dict[str, float]:
    """Mean, 5th and 95th percentile of the token table's norms."""
    norms = encoder.table().detach().float().norm(dim=1).sort().values
    at = {"percentile_5": 0.05, "percentile_95": 0.95}
    return {"mean": float(norms.mean())} | {key: float(norms[int(p * (len(norms) - 1))]) for key, p in at.items()}


def _figures(
    model: TextToImageModel,
    subject: DiagnosedWord,
    class_word: str,
    probes: Sequence[ContextProbe],
    sampling: Sampling,
) -> SubjectFigures:
    fill = {"vectors": subject.vectors, "words": subject.words, "layers": subject.layers}
    images = sampling.images
    first = next(iter(model.text_encoders.values()))
    with apply_deltas(model, from_lora(model, subject.lora) if subject.lora else {}):
        each = _divergences(model, probes, Filling(**fill), sampling) if images else None
        rows = []
        for index, probe in enumerate(probes):
            similarity = context_similarity(model, [probe], **fill)
            pair = (None, None) if each is None else tuple(each[index].tolist())
            rows.append(PromptFigures(probe.template, probe.word, *similarity, *pair))
        cosines = context_cosines(first, probes[0].template, subject, class_word)
    keys = ["sim1", "sim2", *(["skl", "skl_normalised"] if images else [])]
    found = [] if subject.vectors is None else list(subject.vectors.items())
    return SubjectFigures(
        label=subject.label,
        prompts=tuple(rows),
        means={key: sum(getattr(row, key) for row in rows) / len(rows) for key in keys},
        cosines=cosines,
        embeddings=tuple(one for name, value in found for one in embeddings(model.text_encoders[name], value)),
    )


def _divergences(
    model: TextToImageModel, probes: Sequence[ContextProbe], filling: Filling, sampling: Sampling
) -> torch.Tensor:
    """SKL of each probe, raw and normalised, (probes, 2): the mean over its pictures."""
    each = rearrange(
        skl_of_each(model, probes, filling, sampling), "(probes images) kind -> probes images kind", probes=len(probes)
    )
    return each.mean(1)


def _readable(encoder: TextEncoder, token: int) -> str:
    special = {encoder.bos: "start", encoder.eos: "end"}
    return special.get(token) or encoder.token_text(token).removesuffix(END_OF_WORD)
