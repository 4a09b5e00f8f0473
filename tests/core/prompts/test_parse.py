"""Every bad line of a prompt file is found in one go, at its line number, and every good one passes unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.prompts.parse import PromptFileError, parse_prompts, read_prompt_file

WORD = st.text("abcdefgXYZ'-,.éß", min_size=1, max_size=8)
GOOD = st.tuples(st.lists(WORD, max_size=3), st.lists(WORD, max_size=3)).map(
    lambda parts: " ".join([*parts[0], "{}", *parts[1]])
)
IGNORED = st.sampled_from(["", "   ", "# a comment", "\t# {} and {}", "#{}"])
ENDING = st.sampled_from(["", "  ", " # note with {}", "\t#"])


@given(st.lists(st.one_of(GOOD, IGNORED), max_size=12), ENDING, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_good_lines_come_back_in_order_without_comments(lines, ending, newline, bom):
    unique, seen = [], set()
    for line in lines:
        if line.strip().startswith("#") or not line.strip() or line.casefold() not in seen:
            unique.append(line)
            seen.add(line.casefold())
    prompts = [line for line in unique if line.strip() and not line.strip().startswith("#")]
    text = "\ufeff" * bom + newline.join(line + ending if line in prompts else line for line in unique)
    if prompts:
        assert parse_prompts(text) == tuple(prompts)
    else:
        with pytest.raises(PromptFileError, match="no prompt found"):
            parse_prompts(text)


BAD = {
    "no placeholder": (st.lists(WORD, min_size=1, max_size=4).map(" ".join), "has no {}"),
    "other placeholder": (st.sampled_from(["a S* here", "a <new1>", "a { }"]), "has no {}"),
    "two": (GOOD.map(lambda good: good + " and {}"), "has {} 2 times"),
}


@given(st.data())
def test_all_bad_lines_are_reported_with_their_numbers(data):
    lines, expected = [], {}
    for number in range(1, data.draw(st.integers(1, 10)) + 1):
        kind = data.draw(st.sampled_from(["good", "ignored", "repeat", *BAD]))
        if kind == "ignored":
            lines.append(data.draw(IGNORED))
        elif kind == "repeat":
            lines.append("  An Old   {} " if number % 2 else "an old {}")
        elif kind == "good":
            lines.append(f"number {number} of {{}}")
        else:
            prompts, message = BAD[kind]
            lines.append(data.draw(prompts) + f" line {number}")  # never a repetition by chance
            expected[number] = message
    repeats = [n for n, line in enumerate(lines, 1) if " ".join(line.casefold().split()) == "an old {}"]
    expected |= dict.fromkeys(repeats[1:], f"repeats line {min(repeats, default=0)}")
    if not any(line.strip() and not line.strip().startswith("#") for line in lines):
        expected = {1: "no prompt found"}
    text = "\n".join(lines)
    if not expected:
        assert len(parse_prompts(text)) > 0
        return
    with pytest.raises(PromptFileError) as error:
        parse_prompts(text, "mine.txt")
    assert list(error.value.problems) == sorted(expected)
    assert str(error.value).startswith("mine.txt ")
    for number, message in expected.items():
        assert message in error.value.problems[number]
        assert f"line {number}: " in str(error.value)


def test_a_missing_placeholder_says_what_to_write():
    with pytest.raises(PromptFileError, match=r"write \{\} where the new word belongs"):
        parse_prompts("a photo of S* on a beach")


def test_length_is_checked_for_every_encoder_and_filling(encoder):
    exact = "{}" + " cat" * 74
    assert parse_prompts(exact, encoders=[encoder]) == (exact,)
    for filling in ({"rows": 2}, {"class_word": "teddy bear"}):
        with pytest.raises(PromptFileError, match=f"line 2: .*76 tokens of {encoder.name}.*room for 75"):
            parse_prompts("a {}\n" + exact, encoders=[encoder], **filling)


def test_a_hash_inside_a_word_is_no_comment():
    assert parse_prompts("a {} in C#\n{}#1\na {} #no") == ("a {} in C#", "{}#1", "a {}")


def test_files_that_are_no_text_are_reported_too(tmp_path):
    with pytest.raises(PromptFileError, match=r"absent\.txt"):
        read_prompt_file(tmp_path / "absent.txt")
    with pytest.raises(PromptFileError, match="cannot be read"):
        read_prompt_file(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"a {}\na caf\xe9 {}\n")
    with pytest.raises(PromptFileError, match="line 2: this is not UTF-8"):
        read_prompt_file(tmp_path / "latin.txt")
    (tmp_path / "good.txt").write_text("a café {}\n", encoding="utf-8")
    assert read_prompt_file(tmp_path / "good.txt") == ("a café {}",)
