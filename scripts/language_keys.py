"""What a language's translation lacks, has too much of, or has of an English text that changed since.

usage: language_keys.py LANGUAGE [--skeleton FOLDER] [--accept]
       language_keys.py --mark

--skeleton FOLDER  writes the language's files below FOLDER, which may be this repository: what is translated already,
                   the rest in English, and nothing that is left over
--accept           notes that the translation is that of the English texts as they are now
--mark             after a change to a shipped graph: gives its notes their keys, and js/notes/en.json their texts

LANGUAGE is what ComfyUI calls it: zh, ja, fr, ... A ComfyUI is needed, to read the nodes' schemas with.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from find_comfyui import REPOSITORY, find_comfyui

NODES, MAIN = "locales/{}/nodeDefs.json", "locales/{}/main.json"
NOTES, TEXTS = "js/notes/{}.json", "js/texts/{}.json"
PAGE = "js/docs/{node}/{{}}.md"
ACCEPTED = "scripts/translated/{}.json"
NOTE = "contextual_inversion_note"
"""The property of a note in a shipped graph that says which of `NOTES` it is."""
GRAPH = "contextual_inversion_graph"
"""The entry of a graph's `extra` that says which shipped one it is."""
SPOKEN = re.compile(r"\bspoken\(\s*\"((?:[^\"\\]|\\.)*)\"")
"""A text of the views: what `spoken` of js/spoken.js is called with."""
FILE = re.compile(r"\.(safetensors|txt|tar|png|jpe?g|webp)$")
Text = str | Mapping[str, "Text"]
"""What a file says: a page's text, or JSON whose leaves are texts."""


def english(info: Mapping[str, Any]) -> dict[str, Text]:
    """Every file of a language, by its name with {} for the language, in English.

    `info`: node id to what ComfyUI says of the node at /object_info.
    """
    categories = {part for node in info.values() for part in node["category"].split("/")}
    return {
        NODES: {name: node_texts(node) for name, node in info.items()},
        MAIN: {"nodeCategories": {category: category for category in sorted(categories)}},
        NOTES: notes(),
        TEXTS: {text: text for text in sorted({*view_texts(), *titles()})},
        **{PAGE.format(node=name): (REPOSITORY / f"js/docs/{name}.md").read_text(encoding="utf-8") for name in info},
    }


def node_texts(node: Mapping[str, Any]) -> dict[str, Text]:
    """A node as the front end's nodeDefs.json has it; `options` are read by js/language.js."""
    inputs = {name: spec for group in ("required", "optional") for name, spec in node["input"].get(group, {}).items()}
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {front_end_key(name): input_texts(name, *spec) for name, spec in inputs.items()},
        "outputs": {str(index): {"name": name, "tooltip": tooltip} for index, (name, tooltip) in enumerate(outputs)},
    }


def input_texts(name: str, kind: Any, facts: Mapping[str, Any]) -> dict[str, Text]:
    """An input's name, tooltip and options. A file's name is nobody's to translate."""
    offered = facts.get("options") or (kind if isinstance(kind, list) else [])
    options = {str(one): str(one) for one in offered if not FILE.search(str(one))}
    return {"name": name, "tooltip": facts["tooltip"], **({"options": options} if options else {})}


def front_end_key(name: str) -> str:
    """A name as the front end looks it up: a point would lead one level down."""
    return name.replace(".", "_")


def files() -> dict[str, Path]:
    """The files of the shipped graphs by what each calls itself, which is how links and translations know it; one that
    is new is called by its file's name without number, in small letters."""
    named = {}
    for file in sorted((REPOSITORY / "workflows").glob("*.json")):
        graph = json.loads(file.read_text(encoding="utf-8"))
        named[graph["extra"].get(GRAPH) or re.sub(r"\W+", "_", file.stem.lower().lstrip("0123456789 "))] = file
    return named


def workflows() -> dict[str, Any]:
    """The shipped graphs by name."""
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files().items()}


def numbered(name: str, graph: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The notes of a shipped graph, each with its key: the graph's name and a number."""
    shown = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    return ((f"{name}/{number}", note) for number, note in enumerate(shown, 1))


def notes() -> dict[str, str]:
    """What the notes in the shipped graphs say, by key."""
    return {
        key: note["widgets_values"][0] for name, graph in workflows().items() for key, note in numbered(name, graph)
    }


def mark() -> int:
    """Lets js/language.js know the shipped graphs and their notes."""
    for name, graph in workflows().items():
        graph["extra"][GRAPH] = name
        for key, note in numbered(name, graph):
            note["properties"][NOTE] = key
        file = files()[name]
        indent = 2 if file.read_text(encoding="utf-8").startswith('{\n  "') else 1
        file.write_text(json.dumps(graph, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    write(REPOSITORY / NOTES.format("en"), notes())
    return 0


def titles() -> set[str]:
    """What groups and nodes of the shipped graphs are called there."""
    parts = [part for graph in workflows().values() for part in (*graph["nodes"], *graph["groups"])]
    return {part["title"] for part in parts if part.get("title")}


def view_texts() -> set[str]:
    """What the views in the page say."""
    sources = (file.read_text(encoding="utf-8") for file in (REPOSITORY / "js").rglob("*.js"))
    return {json.loads(f'"{text}"') for source in sources for text in SPOKEN.findall(source)}


def translated(language: str) -> dict[str, Text]:
    """What there is of a language, in the form of `english`."""
    files = {name: REPOSITORY / name.format(language) for name in (NODES, MAIN, NOTES, TEXTS)}
    pages = (REPOSITORY / "js" / "docs").glob(f"*/{language}.md")
    return {
        **{name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()},
        **{PAGE.format(node=page.parent.name): page.read_text(encoding="utf-8") for page in pages},
    }


def flat(texts: Text, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with the path that leads to it."""
    if isinstance(texts, str):
        yield path, texts
    else:
        for name, inner in texts.items():
            yield from flat(inner, f"{path} > {name}" if path else name)


def differences(whole: Mapping[str, Text], language: str) -> list[str]:
    """A line for every text that the language lacks, or has too much."""
    wanted, there = dict(flat(whole)), dict(flat(translated(language)))
    missing = [f"missing: {path}" for path in wanted if not there.get(path, "").strip()]
    return missing + [f"left over: {path}" for path in there if path not in wanted]


def completed(english: Text, there: Text | None) -> Text:
    """The texts that are wanted, translated where they are there."""
    if isinstance(english, str):
        return there if isinstance(there, str) and there.strip() else english
    inner = there if isinstance(there, Mapping) else {}
    return {name: completed(text, inner.get(name)) for name, text in english.items()}


def digests(whole: Mapping[str, Text]) -> dict[str, str]:
    """A few letters for every English text, or for an input's texts together, which change with it.

    Texts that are looked up by their English are none of them: a change makes them missing.
    """
    parts: dict[str, list[str]] = {}
    for path, text in flat({name: texts for name, texts in whole.items() if name != TEXTS}):
        parts.setdefault(" > ".join(path.split(" > ")[:4]), []).append(text)
    return {path: hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8] for path, texts in parts.items()}


def changed(whole: Mapping[str, Text], language: str) -> list[str]:
    """A line for every English text that is another one than when its translation was accepted."""
    file = REPOSITORY / ACCEPTED.format(language)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [f"changed: {path}" for path, now in digests(whole).items() if before.get(path, now) != now]


def schemas() -> dict[str, Any]:
    """The nodes' schemas, in a ComfyUI without any file."""
    found = find_comfyui()
    if found is None:
        raise SystemExit("No ComfyUI found. Say where yours is: COMFYUI_PATH=/folder/of/ComfyUI")
    sys.path.insert(0, str(found))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, tempfile.mkdtemp()
    import server
    from aiohttp import web

    server.PromptServer.instance = SimpleNamespace(routes=web.RouteTableDef())
    listed = asyncio.run(importlib.import_module("contextual_inversion.nodes").extension().get_node_list())
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in listed}


def write(file: Path, texts: Text) -> None:
    """A page as it is, anything else as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = texts if isinstance(texts, str) else json.dumps(texts, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")


def main() -> int:
    """Prints the differences; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("language", nargs="?", default="en")
    parser.add_argument("--skeleton", type=Path, metavar="FOLDER")
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--mark", action="store_true")
    options = parser.parse_args()
    if options.mark:
        return mark()
    if options.language == "en":
        parser.error("English is what the nodes, pages and graphs say; name another language")
    whole = english(schemas())
    if options.skeleton:
        there = translated(options.language)
        for name, texts in whole.items():
            write(options.skeleton / name.format(options.language), completed(texts, there.get(name)))
    if options.accept:
        write(REPOSITORY / ACCEPTED.format(options.language), digests(whole))
    found = differences(whole, options.language) + changed(whole, options.language)
    print("\n".join(found) or f"{options.language} is whole")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
