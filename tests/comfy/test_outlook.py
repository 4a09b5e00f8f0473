"""What a node says it will do, before it runs: held against what it does."""

import json

import pytest

from .test_live_view import PREFIX, ask, call, every_step, graph, module  # noqa: F401

OUTPUT = "contextual_inversion_training"
EVENT = "contextual_inversion.training"
AUTO = "auto (for this model)"
SD = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "any.safetensors"}}


def outlook(ask, nodes: dict, node_id: str = "train") -> dict:  # noqa: F811
    status, said = ask("POST", "/outlook", json={"nodes": [node_id], "graph": nodes})
    assert status == 200, said
    return said[node_id]


CHOICES = {
    "as the recipe": {"steps": 2},
    "all chosen": {"steps": 2, "learning_rate": 5e-6, "batch": 1, "vectors": 5, "preview_every": 1},
    "another recipe": {"steps": 2, "recipe": "CoRe stage 1 (paper)", "batch": 1},
    "a vector for every layer": {"steps": 2, "train": "XTI: a vector for every layer", "batch": 1},
    "a LoRA": {"steps": 2, "train": "DreamBooth, LoRA", "rank": 2},
    "weights and word": {"steps": 2, "train": "Custom Diffusion", "weight_rate": 2e-4, "prior_preservation": 0.5,
                         "prior_pictures": 1},
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_said_before_is_what_is_trained(run_graph, comfyui, ask, every_step, choice):  # noqa: F811
    """The page's sentence, the news while it runs and the concept's own account are of the same numbers."""
    chosen = {"learning_rate": 0.0, "batch": 0, "vectors": 0, "seed": 40} | CHOICES[choice]
    nodes = graph(**chosen)
    before = outlook(ask, nodes)["plan"]
    json.dumps(before, allow_nan=False)
    run = run_graph(nodes, keep={"concept": ("train", 0)})
    assert run.status == "success", run.error
    (whole,) = run.ui["train"][OUTPUT]
    assert whole["plan"] == before
    trained = run.kept["concept"].provenance["settings"]
    learns_word = before["vectors"] is not None or choice == "weights and word"
    assert before["steps"] == trained["steps"] == run.kept["concept"].provenance["steps"]
    assert before["batch"] == trained["batch"]
    assert before["rate"] == (trained["learning_rate"] if learns_word else trained["weight_rate"])
    assert before["weight_rate"] == (trained["weight_rate"] if choice == "weights and word" else None)
    if before["vectors"] is not None:
        assert before["vectors"] == trained["vectors"]
    assert len(whole["samples"]) == before["pictures"]


def test_it_says_what_hangs_on_the_model_where_nobody_can_tell(comfyui, ask):  # noqa: F811
    nodes = graph(steps=0, learning_rate=0.0, batch=0, vectors=0)
    demo = outlook(ask, nodes)["plan"]
    assert (demo["recipe"], demo["steps"], demo["rate"], demo["batch"], demo["vectors"]) == (
        "Demo model",
        200,
        1e-2,
        4,
        3,
    )
    real = outlook(ask, nodes | {"model": SD})["plan"]
    assert (real["recipe"], real["steps"], real["rate"], real["batch"]) == ("CoRe stage 1 (paper)", 300, 5e-3, 6)
    unknown = outlook(ask, nodes | {"model": {"class_type": "SomebodysLoader", "inputs": {}}})
    assert unknown == {"plans": {"demo": demo, "stable diffusion": real}}
    # Through other nodes it is the same model, also in circles that nobody can queue.
    through = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["model", 1], "stop_at_clip_layer": -1}}
    nodes["train"]["inputs"]["clip"] = ["between", 0]
    assert outlook(ask, nodes | {"between": through})["plan"] == demo
    through["inputs"]["clip"] = ["between", 0]
    assert "plans" in outlook(ask, nodes | {"between": through})


def test_what_is_connected_is_looked_up_or_said_to_be_unknown(comfyui, ask):  # noqa: F811
    steps = {"class_type": "PrimitiveInt", "inputs": {"value": 7}}
    nodes = graph(steps=["steps", 0], class_word=["images", 2])
    assert outlook(ask, nodes | {"steps": steps})["plan"]["steps"] == 7
    said = outlook(ask, nodes | {"steps": {"class_type": "SomebodysNumber", "inputs": {}}})["plan"]
    assert (said["steps"], said["connected"], said["seconds"]) == (None, ["steps"], None)
    nodes = graph(concept=["other", 0])
    assert outlook(ask, nodes)["plan"]["connected"] == ["vectors"]
    nodes = graph(recipe=["other", 0])
    assert outlook(ask, nodes) == {"connected": ["recipe"]}


def test_what_cannot_be_trained_is_said_before_it_runs(run_graph, comfyui, ask):  # noqa: F811
    nodes = graph(train="DreamBooth, LoRA", recipe="CoRe stage 1 (paper)")
    refused = outlook(ask, nodes)["refused"]
    run = run_graph(nodes, keep={"concept": ("train", 0)})
    assert refused in run.error["exception_message"]
    assert "no number" in outlook(ask, graph(steps="many"))["refused"]
    assert outlook(ask, graph(steps=-3))["refused"]


def test_every_node_with_a_panel_says_what_it_will_do(comfyui, ask):  # noqa: F811
    """With the values that its widgets have from the beginning, on both kinds of models."""
    ours = {name: node for name, node in comfyui.nodes.NODE_CLASS_MAPPINGS.items() if hasattr(node, "unchecked")}
    panels = [
        name for name, node in ours.items() if "LOSS_MAP" in [one.io_type for one in node.define_schema().outputs]
    ]
    assert len(panels) == 6
    for name in panels:
        for source in (call("LoadDemoModel"), SD):
            nodes = {"model": source, "train": {"class_type": name, "inputs": {"clip": ["model", 1]}}}
            said = outlook(ask, nodes)["plan"]
            assert said["steps"] > 0, name
            assert said["batch"] > 0, name
            assert said["rate"] > 0, name


@pytest.mark.parametrize(
    "sent",
    [
        {"nodes": "train", "graph": {}},
        {"nodes": [1], "graph": {}},
        {"nodes": ["train"], "graph": []},
        {"nodes": ["train"], "graph": {"train": 3}},
        {"nodes": ["train"], "graph": {"train": {"class_type": 3, "inputs": {}}}},
        {"nodes": ["train"], "graph": {"train": {"class_type": "KSampler"}}},
    ],
)
def test_what_is_no_graph_is_refused(comfyui, ask, sent):  # noqa: F811
    status, said = ask("POST", "/outlook", json=sent)
    assert (status, set(said)) == (400, {"error"})


def test_nodes_that_do_not_train_have_no_outlook(comfyui, ask):  # noqa: F811
    nodes = graph()
    assert ask("POST", "/outlook", json={"nodes": ["model", "text", "nobody"], "graph": nodes}) == (200, {})


def test_a_training_says_how_long_the_next_like_it_will_take(run_graph, comfyui, ask, monkeypatch):  # noqa: F811
    """From the seconds of its own start, steps and pictures; others and what was never done say nothing."""
    pace, view = module("page.pace"), module("page.live_view")

    def seconds(**changes: object) -> float | None:
        return outlook(ask, graph(**{"preview_every": 0, **changes}))["plan"]["seconds"]

    def trained(steps: int, seed: int) -> float | None:
        nodes = graph(steps=steps, seed=seed, preview_every=0)
        monkeypatch.setattr(view, "running", lambda: (nodes, None))
        return run_graph(nodes, keep={"concept": ("train", 0)}).ui["train"][OUTPUT][0]["plan"]["seconds"]

    pace._file().unlink(missing_ok=True)
    assert trained(4, 50) is None, "the first one cannot know"
    assert seconds(steps=4) > 0
    assert seconds(steps=8) is None, "four steps are too few to tell of more"
    trained(10, 51)
    (known,) = json.loads(pace._file().read_text()).values()
    assert known["steps"] == 10
    for steps in (1, 10, 3000):
        assert seconds(steps=steps) == pytest.approx(known["before"] + steps * known["step"])
    assert trained(2, 52) == pytest.approx(known["before"] + 2 * known["step"])
    assert list(json.loads(pace._file().read_text()).values()) == [known], "fewer steps tell less"
    assert seconds(steps=4, preview_every=2) is None, "no picture was drawn"
    assert seconds(steps=4, batch=1) is None, "another batch"
    pace._file().write_text("[1, 2")
    assert seconds(steps=4) is None
