"""Every language under locales/ is whole: its keys are those of schemas, pages and shipped graphs; it says the same."""

import importlib
import json
import re
import unicodedata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LANGUAGES = sorted(folder.name for folder in (REPOSITORY / "locales").iterdir() if folder.is_dir())
PREFIX = "ContextualInversion"
KEPT = re.compile(
    r"\d+(?:[.,]\d+)*(?:e-?\d+)?|\{\w*\}|<[\w-]+>|embedding:\w+|models/\w+|\b\w+\.md\b|lambda_\w+|`[^`\n]+`"
)
"""What is the same in every language: numbers, what is typed, where files lie."""
COMPILED = re.compile(r"[{}@|]")
"""What the front end would read as the syntax of its messages, in names and descriptions."""
EMPHASIS = re.compile(r"(?<![\\*])\*{1,2}(?!\*)")


@pytest.fixture(scope="module")
def keys():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "scripts"))
        yield importlib.import_module("language_keys")


@pytest.fixture
def whole(comfyui, keys, monkeypatch, tmp_path):
    """All texts in English; no list offers the files of other tests."""
    monkeypatch.setattr(comfyui.folder_paths, "get_filename_list", lambda kind: [])
    monkeypatch.setattr(comfyui.folder_paths, "get_input_directory", lambda: str(tmp_path))
    ours = {name for name in comfyui.nodes.NODE_CLASS_MAPPINGS if name.startswith(PREFIX)}
    return keys.english(comfyui.object_info(ours - {f"{PREFIX}TestSink"}))


@pytest.fixture
def pairs(keys, whole, language):
    """(path, English, translated) of every text that is in both."""
    english, there = dict(keys.flat(whole)), dict(keys.flat(keys.translated(language)))
    return [(path, text, there[path]) for path, text in english.items() if path in there]


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_missing_and_nothing_left_over(keys, whole, language):
    found = keys.differences(whole, language)
    assert not found, "\n" + "\n".join(found)


def test_the_comparison_sees_what_is_missing_and_what_is_left_over(keys, monkeypatch):
    there = {keys.TEXTS: {"a": "1", "b": " ", "d": "4"}}
    monkeypatch.setattr(keys, "translated", lambda language: there)
    found = keys.differences({keys.TEXTS: {"a": "A", "b": "B", "c": "C"}}, "xx")
    name = keys.TEXTS
    assert found == [f"missing: {name} > b", f"missing: {name} > c", f"left over: {name} > d"]


def test_a_skeleton_keeps_what_is_translated_and_drops_what_is_left_over(keys):
    english = {"a": "A", "b": {"c": "C", "d": "D"}, "e": {"f": "F"}, "g": "G"}
    there = {"b": {"d": "4", "x": "9"}, "a": "1", "e": "no longer", "g": " ", "y": "8"}
    assert keys.completed(english, there) == {"a": "1", "b": {"c": "C", "d": "4"}, "e": {"f": "F"}, "g": "G"}
    assert keys.completed(english, None) == english


def test_a_changed_english_text_is_named_until_it_is_accepted(keys, monkeypatch, tmp_path):
    monkeypatch.setattr(keys, "REPOSITORY", tmp_path)
    before, after = {keys.NOTES: {"a": "A", "b": "B"}}, {keys.NOTES: {"a": "A", "b": "other", "c": "C"}}
    assert keys.changed(before, "xx") == []
    keys.write(tmp_path / keys.ACCEPTED.format("xx"), keys.digests(before))
    assert keys.changed(before, "xx") == []
    assert keys.changed(after, "xx") == [f"changed: {keys.NOTES} > b"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_and_names_are_those_of_the_english_text(pairs):
    lost = [(path, sorted(set(KEPT.findall(text)) - set(KEPT.findall(said)))) for path, text, said in pairs]
    found = [f"{path}: {' '.join(names)}" for path, names in lost if names]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_translated(pairs):
    sentences = [(path, text, said) for path, text, said in pairs if text.endswith(".") or "\n" in text]
    assert len(sentences) > 300
    assert [path for path, text, said in sentences if text == said] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_front_end_can_read_names_and_descriptions(pairs):
    names = [pair for pair in pairs if pair[0].rsplit(" > ")[-1] in ("name", "display_name", "description")]
    assert len(names) > 200
    assert [path for path, _, said in names if COMPILED.search(said)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_emphasis_begins_and_ends_where_markdown_sees_it(keys, pairs):
    marked = [(path, said) for path, _, said in pairs if path.startswith(("js/docs/", keys.NOTES))]
    assert [f"{path}: {place}" for path, said in marked for place in stray(said)] == []


def stray(text: str) -> list[str]:
    """Where a * stays a *: CommonMark takes none as a beginning that has a letter before it and punctuation behind."""
    found, open_ = [], ""
    for match in EMPHASIS.finditer(re.sub(r"`[^`\n]+`", "code", text)):
        whole, (start, end) = match.string, match.span()
        before, after = whole[start - 1 : start] or " ", whole[end : end + 1] or " "
        begins = not after.isspace() and (not punctuation(after) or before.isspace() or punctuation(before))
        ends = not before.isspace() and (not punctuation(before) or after.isspace() or punctuation(after))
        if open_ and ends and match.group() == open_:
            open_ = ""
        elif not open_ and begins:
            open_ = match.group()
        else:
            found.append(whole[max(0, start - 12) : end + 12])
    return found + ([f"{open_} without an end"] if open_ else [])


def punctuation(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "PS"


@pytest.mark.parametrize(
    ("text", "strays"),
    [("a *b* c **d**", 0), ("**新词**，", 0), ("**新词。**后", 2), ("用*「加载」*来", 2), ("2 * 3", 1), ("`a*b`", 0)],
)
def test_stray_emphasis_is_seen(text, strays):
    assert len(stray(text)) == strays


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_begins_with_the_name_of_its_node(keys, language):
    there = keys.translated(language)
    pages = {name: page for name, page in there.items() if name.startswith("js/docs/")}
    assert len(pages) > 15
    for name, page in pages.items():
        shown = there[keys.NODES][name.split("/")[2]]["display_name"]
        assert page.startswith(f"# {shown}\n"), name
        assert "\n|" not in page, f"{name}: the panel that shows it is narrow and cuts tables off"
        assert re.findall(r"\]\((?!https?:)", page) == [], f"{name}: a page is shown where no other file of ours is"


def test_shipped_graphs_and_their_notes_are_marked(keys):
    """After a change to them: scripts/language_keys.py --mark."""
    for name, graph in keys.workflows().items():
        assert graph["extra"][keys.GRAPH] == name
        assert all(note["properties"][keys.NOTE] == key for key, note in keys.numbered(name, graph))
    assert json.loads((REPOSITORY / "js" / "notes" / "en.json").read_text(encoding="utf-8")) == keys.notes()
