"""Any text at all is either refused with a reason or a file inside its folder that a prompt can name."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contextual_inversion.core.files.names import (
    RESERVED,
    changed_meaning,
    inside,
    nameable,
    namesakes,
    numbered,
    safe_name,
    safe_path,
    taken_by,
)

HOSTILE = [
    "", ".", "..", "../x", "..\\x", "/etc/passwd", "C:\\x", "C:x", "\\\\server\\share", "a/../../b", "a//b", "a/", "/a",
    "con", "CON", "Con.txt", "nul", "aux.tar", "com1", "COM9.x", "lpt¹", "conin$", "a\0b", "a\nb", "a\tb", "\x7f",
    "a" * 300, "é" * 150, "x.", "x ", " x", ".hidden", "-rf", "dog cat", "dog:1.2", "(dog)", "dog)", "dog,cat", "dog<x",
    "dog[0]", "{dog}", "dog|cat", "dog?", "dog*", '"dog"', "'dog'", "~", "~root", "$HOME", "%date%", "`id`", "a;b",
    "a&b", "dog.safetensors", "dog.PT", "dog.ckpt", "\u202egod", "dog\u200b", "dog\ufeff", "\ud800", "．．", "a／b",
    "CON．",
]  # fmt: skip
GOOD = ["dog", "my-dog_2", "dog.v2", "ДОГ", "犬", "naïve", "हिन्दी", "a+b", "x" * 100, "console", "com10", "_", "0"]
any_text = st.one_of(
    st.text(max_size=12),
    st.text("./\\: ~-conCON1$\0\n", max_size=8),
    st.sampled_from(HOSTILE + GOOD),
    st.text(min_size=90),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_nothing_is_made(name, tmp_path):
    for call in (safe_name, lambda value: inside(tmp_path / "root", value, ".safetensors")):
        if name == "a/" or call is safe_name or "/" not in name:
            with pytest.raises(ValueError, match="name"):
                call(name)
    with pytest.raises(ValueError, match="name"):
        inside(tmp_path / "root", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass_unchanged(name, tmp_path):
    assert safe_name(name) == name
    assert inside(tmp_path, name, ".safetensors") == tmp_path.resolve() / f"{name}.safetensors"


@pytest.mark.parametrize("name", [None, 3, b"dog", Path("dog")])
def test_a_name_is_text(name, tmp_path):
    for call in (safe_name, lambda value: inside(tmp_path, value)):
        with pytest.raises(ValueError, match="a name is a string"):
            call(name)


@given(any_text)
def test_what_is_accepted_works_everywhere(name):
    try:
        accepted = safe_name(name)
    except ValueError:
        return
    assert safe_name(accepted) == accepted
    assert os.path.basename(accepted) == accepted
    assert len((accepted + "_999.safetensors").encode()) <= 255
    assert accepted.casefold().split(".")[0] not in RESERVED
    # What ends an `embedding:` word in a prompt, or means something to a shell, to Windows or to wildcards.
    assert not re.search(r"[\s:,()<>\[\]{}|\"'*?\\/\0$%`;&~]", accepted)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_text, min_size=1, max_size=3).map("/".join))
def test_whatever_the_name_the_path_is_inside(tmp_path, name):
    try:
        path = inside(tmp_path, name, ".safetensors")
    except ValueError:
        return
    assert path.is_relative_to(tmp_path.resolve())
    assert path.name.endswith(".safetensors")
    assert not list(tmp_path.iterdir())


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "sub").mkdir()
    (root / "way_out").symlink_to(outside, target_is_directory=True)
    (root / "file.safetensors").symlink_to(outside / "target.safetensors")
    (root / "home").symlink_to(root)
    for name, ending in [("way_out/x", ".safetensors"), ("file", ".safetensors"), ("way_out", ""), ("home", "")]:
        with pytest.raises(ValueError, match="symbolic link"):
            inside(root, name, ending)
    assert inside(root, "sub/x") == root.resolve() / "sub" / "x"
    (tmp_path / "link_to_root").symlink_to(root, target_is_directory=True)
    assert inside(tmp_path / "link_to_root", "x") == root.resolve() / "x"


@given(any_text)
def test_any_text_makes_a_name_and_a_name_stays(text):
    """Folders and pictures are called anything, and a word may be called after them."""
    name = nameable(text)
    assert safe_name(name) == name == nameable(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("my thing", "my_thing"), ("IMG (1)", "IMG_1_"), ("犬", "犬"), ("con", "_con"), ("-x.pt", "_x_pt")],
)
def test_names_are_made_of_what_people_call_their_pictures(text, name):
    assert nameable(text) == name


@pytest.mark.parametrize("name", ["/abs", "a//b", "a/", "/", "//", "../up", "a/../b", "up/..", "x" * 300 + "/y"])
def test_what_is_wrong_with_a_path_is_said_of_the_whole_of_it(name):
    with pytest.raises(ValueError, match=r"the name ['\"]") as raised:
        safe_path(name)
    assert "is empty" not in str(raised.value)
    assert name[:20] in str(raised.value)


@given(any_text)
def test_every_error_about_a_name_is_short(name):
    said = []
    for call in (safe_name, safe_path):
        try:
            call(name)
        except ValueError as error:
            said.append(str(error))
    assert all(len(one) < 400 for one in said)


def test_files_that_belong_together_share_a_number(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    assert numbered("x", folders, ".s") == "x"
    for folder, name in ((0, "x.s"), (1, "x_2.s"), (1, "x_3.t")):
        folders[folder].mkdir(exist_ok=True)
        (folders[folder] / name).touch()
    assert numbered("x", folders, ".s") == "x_3"
    assert taken_by("x", folders, ".s") == folders[0] / "x.s"
    assert taken_by("y", folders, ".s") is None


def test_what_a_new_file_changes_the_meaning_of(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("x.pt", "x.bin", "x.safetensors", "x", "sub/x.pt", "x.txt", "xy.pt"):
        (tmp_path / name).touch()
    assert len(namesakes([tmp_path, tmp_path], "x")) == 5
    lines = changed_meaning(tmp_path / "x.safetensors", [tmp_path], "x")
    assert [line.split()[2] for line in lines if "until now" in line] == ["x.pt", "x.bin"]
    also = [line for line in lines if "may also mean" in line]
    assert [str(tmp_path / name) in line for name, line in zip(("x:", "sub/x.pt:"), also, strict=True)] == [True, True]
    assert changed_meaning(tmp_path / "new.safetensors", [tmp_path], "new") == []
