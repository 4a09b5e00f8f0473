"""Tokens back to words: nothing is lost, nothing twice, and what belongs together is together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.models.tiny.tokenizer import tiny_tokenizer
from contextual_inversion.core.prompts.words import Piece, PromptWord, chosen, prompt_words


def spelled(text: str) -> list[Piece]:
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [Piece(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def wrapped(pieces: list[Piece]) -> list[Piece]:
    return [Piece("start", "special"), *pieces, Piece("end", "special"), Piece("padding", "padding")]


@given(st.lists(st.sampled_from(["cat", "surrealistically", "café", "naïve", "日本", "photo", "x7q"]), max_size=6))
def test_every_position_belongs_to_one_word_and_words_read_as_written(texts: list[str]) -> None:
    pieces = wrapped(spelled(" ".join(texts)))
    words = prompt_words(pieces)
    assert sorted(p for word in words for p in word.positions) == list(range(len(pieces)))
    assert "".join(word.text for word in words if word.kind == "word") == "".join(texts)


def test_names_chunks_and_padding() -> None:
    name = Piece("gear", name=True, word=2)
    cut = spelled("surrealistically")
    assert len(cut) > 1
    pieces = [*wrapped([*spelled("a"), name, name, Piece("gear", name=True, word=3), cut[0]])[:-1], *wrapped(cut[1:])]
    words = prompt_words(pieces)
    assert [(w.text, w.kind, w.positions) for w in words[:5]] == [
        ("start", "special", (0, 7)),
        ("a", "word", (1,)),
        ("gear", "word", (2, 3)),
        ("gear", "word", (4,)),
        ("surrealistically", "word", (5, *range(8, 8 + len(cut) - 1))),
    ]
    assert [w.text for w in words[5:]] == ["end", "padding"]


def test_words_are_chosen_by_name() -> None:
    words = [PromptWord(text, "word", (i,)) for i, text in enumerate(["a", "red", "hat", "gear", "red"])]
    assert chosen(words, "") == []
    assert [w.positions for w in chosen(words, "<gear>, Red Hat")] == [(3,), (1,), (2,)]
    assert chosen(words, "embedding:gear") == [words[3]]
    with pytest.raises(ValueError, match="'dog' is not in the prompt; it has: a, red, hat, gear"):
        chosen(words, "red, dog")
