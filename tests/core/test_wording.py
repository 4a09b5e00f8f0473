"""Messages for people are short, whatever is in them."""

import pytest

from contextual_inversion.core.prompts.parse import PromptFileError, parse_prompts
from contextual_inversion.core.prompts.words import PromptWord, chosen
from contextual_inversion.core.wording import MOST, listed, quoted, shortened


@pytest.mark.parametrize("length", [0, 1, MOST - 1, MOST, 70_000])
def test_a_message_keeps_its_beginning_and_its_end(length):
    message = "".join(chr(97 + index % 26) for index in range(length))
    short = shortened(message)
    assert len(short) < MOST
    assert short == message if length < MOST else message.startswith(short[:100]) and message.endswith(short[-80:])


def test_a_value_is_quoted_so_that_it_can_be_written():
    assert quoted("a cat") == "'a cat'"
    assert quoted("\ud800").encode()
    assert len(quoted("x" * 10_000)) <= 100


@pytest.mark.parametrize("count", [1, 3, 10_000])
def test_a_list_names_some_and_counts_the_others(count):
    names = [f"word{index}" for index in range(count)]
    text = listed(names, 60)
    shown = text.split(" and ")[0].split(", ")
    assert shown == names[: len(shown)]
    assert len(text) < 90
    assert (count > len(shown)) == (f"and {count - len(shown):,} more" in text)


def test_one_name_is_shown_however_long():
    assert listed(["y" * 500, "z"], 60).startswith("yyy")
    assert len(listed(["y" * 500, "z"], 60)) < 90


def test_ten_thousand_wrong_lines_and_words_make_one_short_message():
    text = "\n".join(f"line {index} has no place for the word" for index in range(10_000))
    with pytest.raises(PromptFileError) as caught:
        parse_prompts(text)
    assert len(caught.value.problems) == 10_000
    assert len(str(caught.value)) < 2200
    assert "line 1:" in str(caught.value)
    assert "lines more" in str(caught.value)
    words = [PromptWord(f"word{index}", "word", (index,)) for index in range(10_000)]
    with pytest.raises(ValueError, match="is not in the prompt") as missing:
        chosen(words, "x" * 5000)
    assert len(str(missing.value)) < MOST
