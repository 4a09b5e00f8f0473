"""What is said of a field before anything runs: ComfyUI marks it and no node is executed."""

import pytest

PREFIX = "ContextualInversion"
MODEL = {"model": ["m", 0], "clip": ["m", 1], "vae": ["m", 2]}
TRAIN = {
    **MODEL,
    "images": ["i", 0],
    "class_word": "cup",
    "name": "my-word",
    "train": "textual inversion",
    "steps": 1,
    "recipe": "auto (for this model)",
    "learning_rate": 0.0,
    "batch": 1,
    "vectors": 0,
    "seed": 0,
    "preview_every": 0,
    "preview_prompt": "a {}",
    "continue_interrupted": False,
}
PROMPTS = {"built_in_set": "none", "own_prompts": "", "file": "none"}
SHOW = {
    "attention": ["a", 0],
    "prompt": "",
    "words": "",
    "layers": "all",
    "resolution": "all",
    "start": 0.0,
    "end": 1.0,
    "normalise": "each word",
    "overlay": 0.5,
    "captions": True,
    "special_tokens": False,
    "padding": False,
    "mask_words": "",
    "mask_threshold": 0.4,
    "conditioning": 1,
}
EVALUATE = {
    "images": ["i", 0],
    "references": ["i", 0],
    "prompts": "",
    "class_word": "cup",
    "clip": "bundled: demo model",
    "dino": "none",
    "background_fill": 0.0,
    "batch": 1,
}
REPAIR = {
    **MODEL,
    "concept": ["t", 0],
    "prompt": "",
    "steps": 1,
    "learning_rate": 0.001,
    "batch": 1,
    "latents": "pure noise",
    "seed": 0,
    "width": 0,
    "height": 0,
}
PATHS = {"model": ["m", 0], "clip": ["m", 1], "concept": ["t", 0], "prompt": " ", "alpha": 0.5}
DIAGNOSE = {
    "model": ["m", 0],
    "clip": ["m", 1],
    "concept": ["t", 0],
    "prompts": "places",
    "own_prompts": "no place",
    "class_word": "",
    "most_prompts": 1,
    "images": 0,
    "steps": 1,
    "guidance": 1.0,
    "width": 64,
    "height": 64,
    "seed": 0,
}
CASES = {
    "an empty class word": ("TrainConcept", {**TRAIN, "class_word": " "}, "class_word", "ordinary word"),
    "a name that no file can have": ("TrainConcept", {**TRAIN, "name": "a/b"}, "name", "a/b"),
    "no prompts at all": ("ContextPrompts", PROMPTS, "own_prompts", "no prompts"),
    "a line without a place": ("ContextPrompts", {**PROMPTS, "own_prompts": "a cup"}, "own_prompts", "line 1"),
    "an unknown set": ("ContextPrompts", {**PROMPTS, "built_in_set": "gone"}, "built_in_set", "gone"),
    "a file that is gone": ("ContextPrompts", {**PROMPTS, "file": "gone.txt"}, "file", "gone.txt"),
    "nothing to show": ("ShowAttention", SHOW, "prompt", "prompt is empty"),
    "nothing to measure by": ("EvaluateConcept", EVALUATE, "prompts", "prompts is empty"),
    "a place and no class word": (
        "EvaluateConcept",
        {**EVALUATE, "prompts": "a {}", "class_word": ""},
        "class_word",
        "class_word is empty",
    ),
    "nothing to repair": ("OptimizeForPrompt", REPAIR, "prompt", "prompt is empty"),
    "nothing to say twice": ("DualPath", PATHS, "prompt", "prompt is empty"),
    "a probe that is none": ("DiagnoseConcept", DIAGNOSE, "own_prompts", "{}"),
}


def call(node, /, **inputs):
    return {"class_type": PREFIX + node, "inputs": inputs}


def graph(name, inputs):
    demo = call("DemoImages", concept="goblet", count=1, background="the concept's own", seed=0)
    return {
        "m": call("LoadDemoModel"),
        "i": demo,
        "t": call("TrainConcept", **TRAIN),
        "a": call("AttendImage", **MODEL, image=["i", 0], prompt="a cup", timesteps="500", seed=0),
        "n": call(name, **inputs),
    }


@pytest.mark.parametrize("case", CASES)
def test_the_field_is_marked_and_nothing_runs(run_graph, comfyui, case):
    name, inputs, field, said = CASES[case]
    given = graph(name, inputs)
    # Only ComfyUI's own sink pulls on a node that shows nothing.
    run = run_graph(given, keep={"out": ("n", 0)})
    assert run.status == "invalid", run.error or run.status
    assert run.executed == []
    errors = run.error["node_errors"]["n"]["errors"]
    marked = {one["extra_info"]["input_name"]: one["details"] for one in errors}
    assert field in marked, errors
    assert said in marked[field]


def test_what_a_link_gives_is_asked_when_it_is_there(run_graph):
    given = graph("TrainConcept", {**TRAIN, "class_word": ["w", 0]})
    given["w"] = {"class_type": "PrimitiveString", "inputs": {"value": "cup"}}
    run = run_graph(given, keep={"concept": ("n", 0)})
    assert run.status == "success", run.error
    given["w"]["inputs"]["value"] = " "
    run = run_graph(given, keep={"concept": ("n", 0)})
    assert run.status == "error"
    assert "class word" in run.error["exception_message"]


def test_special_tokens_are_enough_to_show(run_graph):
    run = run_graph(graph("ShowAttention", {**SHOW, "special_tokens": True}), keep={"out": ("n", 0)})
    assert run.status != "invalid", run.error
