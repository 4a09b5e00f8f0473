"""The list of what the pack leans on in ComfyUI: it is whole, this ComfyUI has all of it, and what is gone is named."""

import ast
import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

THEIRS = ("comfy", "comfy_execution", "folder_paths", "server")


@pytest.fixture(scope="module")
def touched(comfyui: Any) -> Any:
    from contextual_inversion.nodes.comfy import touched

    return touched


def used(file: Path) -> Iterator[str]:
    """Every name of ComfyUI in a file of ours, as "module:name"."""
    known: dict[str, str] = {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in THEIRS:
                    known[name.asname or name.name.split(".")[0]] = (
                        name.name if name.asname else name.name.split(".")[0]
                    )
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in THEIRS:
            for name in node.names:
                known[name.asname or name.name] = f"{node.module}:{name.name}"
                yield f"{node.module}:{name.name}"
    for node in ast.walk(tree):
        path, inner = [], node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if path and isinstance(inner, ast.Name) and inner.id in known and ":" not in known[inner.id]:
            parts = [*known[inner.id].split("."), *path]
            size = 1 if parts[0] in ("folder_paths", "server") else 2
            if len(parts) > size:
                yield ".".join(parts[:size]) + ":" + parts[size]


def node_files(repository: Path) -> list[Path]:
    """All but the bench's, which is no node: it says itself why it cannot run."""
    return [file for file in (repository / "nodes").rglob("*.py") if file.parent.name != "bench"]


def test_everything_that_the_pack_uses_of_comfyui_is_in_the_list(touched: Any, repository: Path) -> None:
    listed = {one.place for one in touched.TOUCHED}
    classes = {place.split(".__init__")[0] for place in listed}
    names = {place.partition(":")[0] + ":" + place.partition(":")[2].split(".")[0] for place in listed | classes}
    found = {name for file in node_files(repository) for name in used(file)}
    assert len(found) > 40
    plain = {name for name in found if not name.endswith(":__file__")}
    assert plain <= names, sorted(plain - names)


def test_this_comfyui_has_all_of_it(touched: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert touched.report() == []
    assert not caplog.records


def test_the_nodes_that_it_names_are_nodes(touched: Any, comfyui: Any) -> None:
    named = {name for one in touched.TOUCHED for name in one.by}
    assert {f"ContextualInversion{name}" for name in named} <= set(comfyui.nodes.NODE_CLASS_MAPPINGS)
    assert all(one.by for one in touched.TOUCHED)


def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sample

    monkeypatch.delattr(comfy.sample, "sample_custom")


def another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.sample

    monkeypatch.setattr(comfy.sample, "sample_custom", lambda model, noise, cfg, sampler, sigmas: None)


def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.modules.attention as theirs

    def constructor(self: Any, *arguments: Any) -> None:
        self.to_qkv, self.to_out, self.heads = arguments

    monkeypatch.setattr(theirs.CrossAttention, "__init__", constructor)


def another_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.ldm.modules.diffusionmodules.openaimodel as theirs

    monkeypatch.setattr(theirs, "forward_timestep_embed", lambda *given: given[0].get("block_patch"))


@pytest.mark.parametrize(
    ("change", "node", "words"),
    [
        (gone, "AttendImage", "it has no comfy.sample.sample_custom"),
        (another_signature, "AttendImage", "comfy.sample.sample_custom takes no seed"),
        (joined, "TrainConcept", "attention.CrossAttention keeps no to_q and no to_k and no to_v"),
        (another_seam, "TrainConcept", "forward_timestep_embed no longer knows 'forward_timestep_embed_patch'"),
    ],
)
def test_what_is_gone_is_named_with_the_node_that_needs_it(
    touched: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Any, node: str, words: str
) -> None:
    change(monkeypatch)
    with caplog.at_level(logging.WARNING):
        lines = touched.report()
    line = next(line for line in lines if f": {node} will not work on this ComfyUI" in line)
    assert words in line
    assert [record.getMessage() for record in caplog.records] == lines
    assert not any("SaveContextualizer" in line for line in lines)


def test_the_check_is_made_when_the_pack_is_loaded(
    touched: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import contextual_inversion.nodes as nodes

    gone(monkeypatch)
    with caplog.at_level(logging.WARNING):
        asyncio.run(nodes.extension().get_node_list())
    assert any("AttendImage will not work" in record.getMessage() for record in caplog.records)
