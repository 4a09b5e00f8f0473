"""Hundreds of mutated graphs: none ends in a traceback without words, hangs, or gives a word that is silly."""

import json
import re
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from messages import LONGEST, own_length

from contextual_inversion.core.models.tiny.config import LATENT_CHANNELS

from .hostile_graphs import (
    PREFIX,
    SOURCE,
    TARGET,
    Mutation,
    mutations,
    source_node,
    strange_masks,
    strange_pictures,
)

COUNT = 600
SEED = 12
SECONDS = 60
OURS = (
    *("ValueError", "ConceptFileError", "PromptFileError", "FileExistsError", "EncoderNotFoundError"),
    *("LearnedNothingError", "NonFiniteLossError"),
)
"""Errors that are raised on purpose, by the last part of their names."""
OF_A_MACHINE = re.compile(
    r"object has no attribute|not subscriptable|unsupported operand|mat1 and mat2|size of tensor|shape '|list index|"
    r"out of range|must be Tensor|not implemented for|invalid literal|could not convert|Sizes of tensors|object is not|"
    r"positional argument|unpack|NoneType"
)
"""Words of an interpreter or a kernel, which tell nobody what to do."""
PROMPTS = {"built_in_set": "concept_world", "own_prompts": "", "file": "none"}
NOT_NODES = ("LoadDemoModel",)


@pytest.fixture
def values(run_graph, comfyui):
    """A proper value for every socket of the shipped graphs, made in one run, and strange ones beside them."""
    from .random_models import build

    def node(name, inputs):
        return {"class_type": f"{PREFIX}{name}", "inputs": inputs}

    model = {"model": ["m", 0], "clip": ["m", 1], "vae": ["m", 2]}
    trained = {"steps": 2, "learning_rate": 0.0, "batch": 1, "vectors": 1, "seed": 0, "preview_every": 0,
               "preview_prompt": "a {}", "continue_interrupted": False, "recipe": "auto (for this model)",
               "images": ["i", 0], "class_word": "cat", "name": "ptn"}  # fmt: skip
    run = run_graph(
        {
            "m": node("LoadDemoModel", {}),
            "i": node("DemoImages", {"concept": "horned-cat", "count": 4, "background": "grass", "seed": 0}),
            "p": node("ContextPrompts", PROMPTS),
            "z": node("LoadContextualizer", {"file": "bundled: demo model"}),
            "t": node("LoadTuningEncoder", {"file": "bundled: demo model"}),
            "r": node("NearestWordRegularizer", {"weight": 0.01, "norm_weight": 0.0, "neighbours": 2,
                                                  "temperature": 0.1, "words": 4}),
            "c": node("TrainConcept", {**model, **trained, "train": "textual inversion"}),
            "x": node("TrainConcept", {**model, **trained, "train": "XTI: a vector for every layer"}),
            "a": node("AttendImage", {**model, "image": ["i", 0], "prompt": "a cat", "timesteps": "500", "seed": 0}),
        },
        keep={"MODEL": ("m", 0), "CLIP": ("m", 1), "VAE": ("m", 2), "IMAGE": ("i", 0), "MASK": ("i", 1),
              "STRING": ("i", 2), "PROMPTS": ("p", 0), "CONTEXTUALIZER": ("z", 0), "TUNING_ENCODER": ("t", 0),
              "REGULARIZER": ("r", 0), "CONCEPT": ("c", 0), "XTI": ("x", 0), "ATTENTION": ("a", 0)},
    )  # fmt: skip
    assert run.status == "success", run.error
    found = dict(run.kept)
    found["by_name"] = {"prompt": "a photo of <ptn> in the snow"}
    found["LATENT"] = {"samples": torch.zeros(1, LATENT_CHANNELS, 16, 16)}
    _, other = build("sdxl")
    concept = found["CONCEPT"]
    found["strange"] = {
        "MODEL": {"another family's": other.model},
        "CLIP": {"another family's": other.clip},
        "CONCEPT": {
            "of another width": replace(concept, vectors={"clip_l": torch.ones(1, 768)}),
            "of two encoders": replace(concept, vectors={"clip_l": torch.ones(1, 128), "clip_g": torch.ones(1, 48)}),
            "of clip_g": replace(concept, vectors={"clip_g": torch.ones(1, 48)}),
            "without a class word": replace(concept, class_word=""),
            "for every layer": found.pop("XTI"),
            "for two layers": replace(concept, layer_vectors={"clip_l": torch.ones(2, 1, 128)}),
            "with a LoRA of nothing": replace(concept, lora={"lora_unet_nothing.lora_up.weight": torch.ones(4, 4)}),
            "with latents of nothing": replace(concept, latents=torch.zeros(1, 3, 8, 8)),
        },
        "LATENT": {"empty": {}, "of sixteen channels": {"samples": torch.zeros(1, 16, 8, 8)}},
        "IMAGE": strange_pictures(),
        "MASK": strange_masks(),
    }
    return found


def shipped_nodes(comfyui, repository):
    """(class type, inputs) of every node of ours in the shipped graphs, each kind of settings once."""
    from .conftest import api_prompt

    found = {}
    for path in sorted((repository / "workflows").glob("*.json")):
        for node in api_prompt(comfyui, path).values():
            name = node["class_type"].removeprefix(PREFIX)
            if node["class_type"].startswith(PREFIX) and name not in NOT_NODES:
                inputs = {key: ["x", 0] if isinstance(value, list) else value for key, value in node["inputs"].items()}
                found.setdefault((name, json.dumps(inputs, sort_keys=True)), (node["class_type"], inputs))
    return list(found.values())


def other_nodes(comfyui, shipped):
    """(class type, inputs) of the nodes that no shipped graph has, with the values that they have on the page."""
    there = {class_type for class_type, _ in shipped}
    ours = (name for name in comfyui.nodes.NODE_CLASS_MAPPINGS if name.startswith(PREFIX) and name not in there)
    found = []
    for name in sorted(ours):
        node = comfyui.nodes.NODE_CLASS_MAPPINGS[name]
        if hasattr(node, "define_schema") and name.removeprefix(PREFIX) not in NOT_NODES:
            declared = {one.id: one for one in node.define_schema().inputs}
            typed = {key: one.default for key, one in declared.items() if getattr(one, "default", None) is not None}
            links = {key: ["x", 0] for key, one in declared.items() if key not in typed and not one.optional}
            found.append((name, links | typed))
    return found


def graph_of(mutation: Mutation, store: dict) -> dict:
    """The node and its sources as a prompt; what the sources give is put into `store`."""
    store.clear()
    prompt = {TARGET: {"class_type": mutation.class_type, "inputs": dict(mutation.inputs)}}
    for name, (_, value) in mutation.sources.items():
        store[name] = value
        prompt[f"source-{name}"] = {"class_type": SOURCE, "inputs": {"key": name}}
        prompt[TARGET]["inputs"][name] = [f"source-{name}", 0]
    return prompt


def fault_of(run, seconds: float) -> str | None:
    """What is wrong with how a mutated graph ended, None where nothing is."""
    if seconds > SECONDS:
        return f"it took {seconds:.0f} s"
    if run.status == "invalid":
        return None
    if run.status == "success":
        return next((silly for value in run.kept.values() if (silly := silly_word(value))), None)
    kind, message = run.error["exception_type"].rpartition(".")[2], run.error["exception_message"].strip()
    if kind not in OURS:
        return f"{kind}: {message:.300}"
    if (length := own_length(message)) >= LONGEST:
        return f"{length} characters: {message:.200}"
    return f"words of a machine: {message}" if OF_A_MACHINE.search(message) else None


def silly_word(value) -> str | None:
    """What is wrong with a word that came out, None for one that is a word, and for anything else."""
    vectors = getattr(value, "vectors", None)
    if vectors is None or value is SOURCE:
        return None
    if not all(torch.isfinite(one).all() and one.norm() > 0 for one in vectors.values()):
        return "a word that is not finite, or nothing"
    return None if value.name and value.class_word.strip() else "a word without a name or class"


def run_of(mutation: Mutation, run_graph, store: dict, info: dict):
    """How a mutated graph ends, and the seconds it took."""
    begin = time.monotonic()
    keep = {"out": (TARGET, 0)} if info[mutation.class_type]["output"] else {}
    run = run_graph(graph_of(mutation, store), keep=keep)
    return run, time.monotonic() - begin


@pytest.fixture
def hostile(comfyui, repository, values):
    """The mutations, the store of what their sources give, and ComfyUI's account of the nodes."""
    store: dict = {}
    comfyui.nodes.NODE_CLASS_MAPPINGS[SOURCE] = source_node(store)
    nodes = shipped_nodes(comfyui, repository)
    nodes += other_nodes(comfyui, nodes)
    info = comfyui.object_info({class_type for class_type, _ in nodes})
    yield mutations(nodes, info, values, SEED), store, info
    del comfyui.nodes.NODE_CLASS_MAPPINGS[SOURCE]


def test_no_mutation_ends_without_words(run_graph, hostile):
    found, store, info = hostile
    assert len(found) >= COUNT
    faults, ends = [], Counter()
    for mutation in found[:COUNT]:
        run, seconds = run_of(mutation, run_graph, store, info)
        ends[run.status] += 1
        if fault := fault_of(run, seconds):
            faults.append(f"{mutation.class_type.removeprefix(PREFIX)}: {mutation.label}: {fault}")
    assert not faults, "\n".join(faults)
    assert {"invalid", "error", "success"} == set(ends)
