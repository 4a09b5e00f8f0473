"""Words, phrases and prompts: what can be read passes unchanged, everything else is refused by name."""

import pytest

from contextual_inversion.core.models.tiny import tiny_tokenizer
from contextual_inversion.core.prompts.phrases import (
    LONGEST_PHRASE,
    LONGEST_PROMPT,
    checked_phrase,
    checked_text,
    require_tokens,
)
from contextual_inversion.core.training.settings import TrainSettings
from contextual_inversion.core.wording import MOST

READABLE = [
    "dog",
    " wooden toy ",
    "caf\u00e9",
    "\u4f60\u597d",
    "\U0001f9f8",
    "a" * LONGEST_PHRASE,
    "don't",
    "C#",
    "\u0928\u092e",
]
UNREADABLE = {
    "nothing": "",
    "spaces": "   ",
    "no-break spaces": "\u00a0\u2003",
    "a zero-width space": "\u200b",
    "a byte order mark": "\ufeff",
    "invisible joiners": "\u200d\u2060",
    "half a character": "\ud800",
    "half a character in a word": "do\udfffg",
    "a null": "do\x00g",
    "an escape": "\x1b[31mdog",
    "the placeholder": "{}",
    "the placeholder in a phrase": "a {} dog",
    "a brace": "{",
    "two lines": "dog\ncat",
    "a novel": "a" * (LONGEST_PHRASE + 1),
    "no text": 5,
}


@pytest.mark.parametrize("text", READABLE)
def test_a_readable_phrase_passes(text):
    assert checked_phrase(text) == text.strip()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name(kind):
    with pytest.raises(ValueError, match="my_input") as caught:
        checked_phrase(UNREADABLE[kind], "my_input")
    assert len(str(caught.value)) < MOST
    assert str(caught.value).encode()


@pytest.mark.parametrize("kind", sorted(set(UNREADABLE) - {"no text"}))
def test_no_training_starts_from_it(kind):
    with pytest.raises(ValueError, match="class word"):
        TrainSettings(class_word=UNREADABLE[kind])


def test_a_prompt_may_have_lines_and_is_bounded():
    assert checked_text("a {}\n\ta b", "prompt") == "a {}\n\ta b"
    assert checked_text("", "prompt") == ""
    for text in ("a\x00", "\ud800", "x" * (LONGEST_PROMPT + 1)):
        with pytest.raises(ValueError, match=r"^my_prompt "):
            checked_text(text, "my_prompt")


class Reader:
    """The vocabulary of CLIP."""

    name, bos, eos = "clip_l", 49406, 49407

    def tokenize(self, text):
        return tiny_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "said"), [("", "no token"), ("<|endoftext|>", "special token"), ("\u3000", "no token")]
)
def test_a_phrase_needs_tokens_of_the_vocabulary(text, said):
    with pytest.raises(ValueError, match=rf"class_word .*{said} of clip_l"):
        require_tokens([Reader()], text, "class_word")


def test_a_word_of_any_script_has_tokens():
    for text in ("dog", "\u4f60\u597d", "\U0001f9f8"):
        require_tokens([Reader()], text)
