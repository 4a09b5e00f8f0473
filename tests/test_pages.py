"""What the pages say in words beside what their tables say."""

import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [Path("README.md"), *sorted(path.relative_to(REPOSITORY) for path in REPOSITORY.glob("docs/*.md"))]
BOUNDS = r"([+-]\d+\.\d+) to ([+-]\d+\.\d+)"
WHOLE = rf"([+-]\d+\.\d+)(?:,| \()(?: 95 % interval)? ?{BOUNDS}"


def parts(page):
    """The tables of a page and what is written around them, each as one line."""
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    tables = " ".join(line for line in lines if line.startswith("|"))
    return tables, " ".join(line.strip() for line in lines if not line.startswith("|"))


@cache
def in_tables():
    """Every paired difference with its interval that a table of any page has."""
    found = [re.findall(WHOLE, parts(page)[0]) for page in PAGES]
    return {tuple(map(float, values)) for page in found for values in page}


def same(said, values):
    """Whether words round what a table has."""
    for text, value in zip(said, values, strict=True):
        digits = len(text.partition(".")[2])
        if abs(float(text) - value) > 0.5 * 10**-digits + 1e-9:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_an_interval_in_words_is_one_of_a_table(page):
    """New trials change the tables and leave the words as they were: then this says which are old."""
    _, words = parts(page)
    whole = re.findall(WHOLE, words)
    old = [said for said in whole if not any(same(said, values) for values in in_tables())]
    bounds = re.findall(BOUNDS, words)
    old += [said for said in bounds if not any(same(said, values[1:]) for values in in_tables())]
    assert not old


def test_what_rounds_to_a_table_is_of_it_and_what_does_not_is_old():
    assert same(("+0.06", "+0.02", "+0.13"), (0.062, 0.018, 0.125))
    assert not same(("+0.240", "+0.117", "+0.379"), (0.241, 0.117, 0.379))
    assert len(in_tables()) > 1000
    (said,) = re.findall(WHOLE, "twice as often (0.474 against 0.233; +0.240, 95 % interval +0.117 to +0.379)")
    assert said == ("+0.240", "+0.117", "+0.379")
