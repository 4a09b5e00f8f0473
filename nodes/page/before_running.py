"""What the nodes of a graph that is not queued yet will do: the page sends the graph, and says what is answered."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import nodes as comfyui_nodes
from comfy_api.latest import io

from ..schema.checking import SOURCES, checked_value
from ..schema.sockets import PREFIX
from . import pace
from .outlook import Outlook

DEMO, STABLE_DIFFUSION = "demo", "stable diffusion"
LOADERS = (
    "CheckpointLoaderSimple",
    "CheckpointLoader",
    "unCLIPCheckpointLoader",
    "DiffusersLoader",
    "CLIPLoader",
    "DualCLIPLoader",
)
"""ComfyUI's nodes that load text encoders. It knows none as narrow as the bundled model's."""
VALUES = ("PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean")
"""ComfyUI's nodes that hold a value to connect."""
DECIDING = ("recipe", "train")
"""Inputs without which nothing can be said."""

Graph = Mapping[str, Any]


def outlook_of(graph: Graph, node_id: str) -> dict[str, Any] | None:
    """What a node of a graph in API format will do: {"plan": facts}, or {"plans": {kind of model: facts}} where the
    graph does not tell the kind and the numbers hang on it, {"refused": why} where it cannot run so, and {"connected":
    names} where what decides is not known before the run. None for a node that does not train."""
    node = graph.get(node_id, {"class_type": ""})
    found = comfyui_nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
    if not node["class_type"].startswith(PREFIX) or not hasattr(found, "outlook"):
        return None
    try:
        given, connected = _given(graph, found, node["inputs"])
        if deciding := [name for name in DECIDING if name in connected]:
            return {"connected": deciding}
        narrow = _narrow(graph, node)
        plans = {}
        for kind in [DEMO, STABLE_DIFFUSION] if narrow is None else [DEMO if narrow else STABLE_DIFFUSION]:
            outlook = found.outlook(kind == DEMO, **given)
            plans[kind] = _facts(graph, node_id, outlook, connected)
    except ValueError as error:
        return {"refused": str(error)}
    first, *others = plans.values()
    return {"plan": first} if all(one == first for one in others) else {"plans": plans}


def is_graph(value: Any) -> bool:
    """Whether JSON data has the form of a graph as ComfyUI queues it."""
    return isinstance(value, dict) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in value.values()
    )


def _facts(graph: Graph, node_id: str, outlook: Outlook, connected: set[str]) -> dict[str, Any]:
    facts = outlook.facts(connected)
    exact = not facts["connected"]
    return {**facts, "seconds": pace.estimate(pace.kind_of(graph, node_id, outlook), outlook) if exact else None}


def _given(graph: Graph, node: type[io.ComfyNode], inputs: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """What the node's `outlook` asks for: the values of widgets, and of sockets whether something is connected. And
    what of the outlook is not known, since it comes along a link."""
    wanted = list(inspect.signature(node.outlook).parameters)[1:]
    given: dict[str, Any] = {}
    connected: set[str] = set()
    for one in node.define_schema().inputs:
        if one.id not in wanted:
            continue
        value = _followed(graph, inputs.get(one.id))
        if one.io_type in SOURCES:
            given[one.id] = pace.is_link(value)
        elif value is None or pace.is_link(value):
            given[one.id] = one.default
            connected |= {one.id} if value is not None else set()
        else:
            given[one.id] = checked_value(one, value)
    return given, {NAMES.get(name, name) for name in connected} | ({"vectors"} if given.get("concept") else set())


NAMES = {"learning_rate": "rate", "preview_every": "pictures", "prior_preservation": "class_pictures"}
"""Inputs that are called otherwise in an outlook."""


def _followed(graph: Graph, value: Any) -> Any:
    """The value behind a link, where a node holds it that does nothing else."""
    source = graph.get(value[0]) if pace.is_link(value) else None
    if source is not None and source["class_type"] in VALUES:
        return source["inputs"].get("value")
    return value


def _narrow(graph: Graph, node: Mapping[str, Any]) -> bool | None:
    """Whether the model before a node is the bundled one; None where nobody can tell."""
    kinds = _loaders(graph, node["inputs"].get("clip"), set())
    return kinds.pop() if len(kinds) == 1 else None


def _loaders(graph: Graph, value: Any, seen: set[str]) -> set[bool | None]:
    """Of the nodes that what comes along a link was loaded by: True for the demo's, False for ComfyUI's, None for
    others that nothing comes to."""
    if not pace.is_link(value) or value[0] in seen:
        return set()
    seen.add(value[0])
    source = graph.get(value[0], {"class_type": "", "inputs": {}})
    kind, inputs = source["class_type"], source["inputs"]
    if kind == f"{PREFIX}LoadDemoModel":
        return {True}
    if kind in LOADERS:
        return {False}
    given = [value for name, value in inputs.items() if name.startswith("clip")] or [*inputs.values()]
    found = {kind for one in given for kind in _loaders(graph, one, seen)}
    return found or {None}
