"""Prompts that a local language model writes: a few examples, then its own; every line is checked before it counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..concept import PLACEHOLDER
from .parse import placeholder_problem, strip_comment

Continue = Callable[[str, int], str]
"""`(text so far, seed) -> what the model says next`."""

SHOWN = 12
"""Examples in one request."""
PATIENCE = 6
"""Requests in a row without a single usable prompt before giving up."""
NEW_TOKENS = 400
BULLET = re.compile(r"^\s*(?:[-*\u2022]+|\d+[.):])\s*")


@dataclass(frozen=True)
class Written:
    """What came of it: the usable `prompts`, and how many lines were left out for each reason."""

    prompts: tuple[str, ...]
    dropped: dict[str, int]

    def figures(self) -> dict[str, object]:
        return {"lines": len(self.prompts) + sum(self.dropped.values()), "dropped": dict(self.dropped)}

    def summary(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none"
        return f"{len(self.prompts)} usable prompts; left out: {left_out}"


class WrittenPrompts:
    """Asks `model` again and again, each time with other examples, until there are enough.

    `fits` says whether a text is short enough for the text encoder. Raises ValueError where there is no example.
    """

    def __init__(
        self,
        model: Continue,
        examples: Sequence[str],
        class_word: str | None = None,
        *,
        fits: Callable[[str], bool] = lambda text: True,
        seed: int = 0,
    ) -> None:
        if not examples:
            raise ValueError("a language model needs at least one example of a prompt")
        self.model, self.examples, self.class_word = model, tuple(examples), class_word
        self.fits, self.seed = fits, seed

    def collect(self, count: int) -> Written:
        """At most `count` different prompts; fewer where the model keeps writing nothing usable."""
        found: dict[str, str] = {}
        dropped: Counter[str] = Counter()
        number = idle = 0
        while len(found) < count and idle < PATIENCE:
            shown = self._examples(number)
            text = self.model(request(shown, self.class_word), self.seed + number)
            before = len(found)
            for line in lines_of(text):
                if len(found) == count:
                    break
                problem = self._problem(line, shown, found)
                if problem is None:
                    found[_same(line)] = line
                else:
                    dropped[problem] += 1
            idle = idle + 1 if len(found) == before else 0
            number += 1
        return Written(tuple(found.values()), dict(dropped))

    def _examples(self, number: int) -> list[str]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.examples), generator=generator)[:SHOWN]
        return [self.examples[place] for place in order.tolist()]

    def _problem(self, line: str, shown: Sequence[str], found: dict[str, str]) -> str | None:
        if placeholder_problem(line) is not None:
            return f"without exactly one {PLACEHOLDER}"
        if _same(line) == PLACEHOLDER:
            return "without a context"
        if _same(line) in found or _same(line) in map(_same, shown):
            return "that came twice"
        return None if self.fits(line) else "too long"


def request(examples: Sequence[str], class_word: str | None) -> str:
    """A list that asks to be continued; a model without a chat template continues it as it stands."""
    what = f"a {class_word}" if class_word else "one thing"
    lines = "\n".join(f"- {example}" for example in examples)
    return (
        f"Captions of photographs and drawings of {what}, in many places and situations, one a line. "
        f"{PLACEHOLDER} stands for its name, once in every caption.\n{lines}\n-"
    )


def lines_of(text: str) -> list[str]:
    """The lines of an answer without bullets, numbers, quotes, comments and full stops."""
    lines = (strip_comment(BULLET.sub("", line)).strip("\"'` ").rstrip(".") for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def without_bullets(text: str) -> str:
    """The same lines without the bullets and numbers of a list, as language models write it."""
    return "\n".join(BULLET.sub("", line) for line in text.splitlines())


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def local_model(source: str, device: str | None = None, *, temperature: float = 0.9) -> Continue:
    """A causal language model from a folder, or by name from the local cache; nothing is downloaded, no pickle read.

    Raises OSError where it is not there or is stored as a pickle.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True, use_safetensors=True)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.eval().to(place)

    @torch.no_grad()
    def proceed(text: str, seed: int) -> str:
        if tokenizer.chat_template:
            asked = [{"role": "user", "content": text.removesuffix("\n-") + "\n\nWrite 40 more lines like these."}]
            ids = tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            ids = tokenizer(text, return_tensors="pt")
        ids = ids.to(place)
        sampled = {"do_sample": True, "temperature": temperature, "top_p": 0.95}
        choice = sampled if temperature > 0 else {"do_sample": False}
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(seed)
            padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            new = model.generate(**ids, max_new_tokens=NEW_TOKENS, pad_token_id=padding, **choice)
        return tokenizer.decode(new[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    return proceed


__all__ = ["Continue", "Written", "WrittenPrompts", "lines_of", "local_model", "request", "without_bullets"]
