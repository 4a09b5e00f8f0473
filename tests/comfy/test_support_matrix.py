"""The tables of what works where say what the tests show, no more and no less."""

import runpy

import pytest


@pytest.fixture(scope="module")
def script(repository):
    return runpy.run_path(str(repository / "scripts" / "support_matrix.py"))


@pytest.fixture(scope="module")
def told(script):
    return script["told_by_tests"]("--collect-only")


@pytest.mark.parametrize("name", ["docs/models.md", "README.md"])
def test_the_table_is_what_the_tests_show(script, told, repository, name):
    text = (repository / name).read_text(encoding="utf-8")
    table = script["TABLES"][name](script["shown_by"](told["cells"]), told["families"])
    assert script["with_table"](text, table) == text, "run scripts/support_matrix.py"


def test_no_test_that_shows_something_may_be_left_out(told):
    assert told["cells"]
    assert [cell["test"] for cell in told["cells"] if cell["skipped"]] == []


def test_two_tests_may_not_say_different_things(script):
    cell = {"row": "DualPath", "family": "Flux.1", "test": "one"}
    shown_by = script["shown_by"]
    with pytest.raises(ValueError, match="'refused' here and 'yes' in another"):
        shown_by([{**cell, "says": "yes"}, {**cell, "says": "refused"}])
    with pytest.raises(ValueError, match="no row"):
        shown_by([{**cell, "row": "Nothing", "says": "yes"}])
    for order in (("yes", script["PROTOCOL"]), (script["PROTOCOL"], "yes")):
        assert shown_by([{**cell, "says": one} for one in order]) == {("DualPath", "Flux.1"): "yes"}


def test_what_nobody_shows_is_untried(script):
    shown = {("DualPath", "Flux.1"): "refused"}
    table = script["matrix"](shown, ["Flux.1", "Chroma"]).splitlines()
    assert table[0] == "| | Flux.1 | Chroma |"
    assert "| DualPath | refused | untried |" in table
    assert "| AttendImage | untried | untried |" in table
