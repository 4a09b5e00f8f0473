"""`contextual-inversion prompts`: a checked file of prompts, of a built-in set or by a local language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

LONGEST = 60
"""Tokens of a prompt without the word: CLIP has room for 75, and the word may be 15 long."""
SETS = Literal["animate", "inanimate", "concept_world", "rich pets", "rich objects", "rich concept_world"]


def main(
    *,
    out: Path = Path("prompts.txt"),
    llm: str | None = None,
    examples: SETS = "inanimate",
    class_word: str | None = None,
    count: int = 100,
    temperature: float = 0.9,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write prompts for a regularizer to a text file, one a line, each of them checked.

    With --llm a local language model continues a list of examples; what is no prompt, too long, or there already, is
    left out and counted. Without it the file holds a built-in set. ContextPrompts and `train` read such files.

    Args:
        out: The text file.
        llm: A folder of a causal language model for transformers, or a model's name in the local cache. Nothing is
            downloaded.
        examples: The set that the language model continues, or that is written.
        class_word: What the word will be for, e.g. dog: then the prompts suit it.
        count: How many prompts to write.
        temperature: How freely the language model chooses; 0 takes the likeliest token, so each list begins alike.
        seed: Of the examples shown and of the choices.
        device: "cpu", "cuda", ...; the GPU where there is one if not given.
        overwrite: Replace the file if it exists.
    """
    from ..core.files.atomic import atomic_write_verified
    from ..core.prompt_sets import rich_set
    from ..core.prompts.sets import built_in_set
    from .places import require_file

    if count < 1 or temperature < 0:
        raise ValueError(f"--count is at least 1 and --temperature at least 0, not {count} and {temperature}")
    if llm is None and class_word is not None:
        raise ValueError("--class-word is what a language model is told: name one with --llm")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another name with --out, or allow --overwrite")
    require_file(out)
    known = rich_set(examples.removeprefix("rich ")) if examples.startswith("rich ") else built_in_set(examples)
    figures: dict[str, Any] = {"file": str(out), "examples": examples, "llm": llm}
    if llm is None:
        prompts: tuple[str, ...] = known.prompts[:count] if known.rich is None else known.rich.first(count)
        if len(prompts) < count:
            print(f"{examples} has no more than {len(prompts)} prompts")
    else:
        from ..core.prompts.written import WrittenPrompts, local_model
        from .loading import chosen_device

        try:
            model = local_model(llm, chosen_device(device), temperature=temperature)
        except OSError as error:  # of transformers, about a connection that is not looked for
            raise FileNotFoundError(
                f"--llm {llm} is neither a folder of a causal language model with safetensors weights nor a model's "
                f"name in the local cache; nothing is downloaded{'' if 'connect' in str(error) else f' ({error})'}"
            ) from error
        result = WrittenPrompts(model, known.prompts, class_word, fits=short_enough, seed=seed).collect(count)
        prompts = result.prompts
        figures |= result.figures()
        print(result.summary())
    figures["prompts"] = len(prompts)
    if prompts:
        out.parent.mkdir(parents=True, exist_ok=True)
        header = f"# {len(prompts)} prompts: {'written by ' + Path(llm).name if llm else examples}\n"
        data = (header + "".join(f"{prompt}\n" for prompt in prompts)).encode()
        atomic_write_verified(out, data, if_exists="replace" if overwrite else "error")
        print(f"wrote {len(prompts)} prompts to {out}")
    if len(prompts) < count and llm is not None:
        raise RuntimeError(
            f"the language model wrote {len(prompts)} of {count} usable prompts"
            + (f"; they are in {out}. " if prompts else ". ")
            + "Try a larger model, one tuned to follow instructions, or another --temperature"
        )
    return figures


def short_enough(text: str) -> bool:
    """Whether CLIP has room for `text` and a word."""
    from ..core.concept import PLACEHOLDER
    from ..core.models.tiny.tokenizer import tiny_tokenizer

    ids = tiny_tokenizer()(text.replace(PLACEHOLDER, ""), add_special_tokens=False)["input_ids"]
    return len(ids) <= LONGEST
