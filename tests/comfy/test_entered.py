"""What somebody enters in core (a regularizer, a method, a recipe) is offered by the nodes and trained in a graph."""

import asyncio
import sys

import pytest

PREFIX = "ContextualInversion"
NODE = PREFIX + "ToyRegularizer"


def pack(name: str = "") -> object:
    """A module of this pack as ComfyUI has imported it."""
    suffix = ".nodes.training"
    root = next(one for one in sys.modules if one.endswith(suffix) and "custom_nodes" in one)[: -len(suffix)]
    return sys.modules[f"{root}.{name}" if name else root]


class Toy:
    """Vectors cost their squared length."""

    name = "toy"

    def __init__(self, weight: float, times: int) -> None:
        self.weight, self.times = weight, times

    def prepare(self, model: object, class_word: str, length: int) -> None:
        pass

    def __call__(self, step: object) -> object:
        seam = pack("core.training.regularizers.seam")
        value = sum((one**2).mean() for one in step.copies.values())
        return seam.Terms({"toy": seam.LossTerm(self.times * value, self.weight)})

    def state(self) -> dict:
        return {"name": self.name, "weight": self.weight, "times": self.times}


@pytest.fixture
def toys(comfyui: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry each, and the pack's list of nodes read anew."""
    import nodes

    registry, methods = pack("core.training.regularizers.registry"), pack("core.training.methods")
    presets = pack("core.training.presets")
    kind = registry.Kind(
        "Toy", "Keeps it short.", lambda model, method, **given: Toy(**given), {"weight": 0.25, "times": 2}
    )
    monkeypatch.setitem(registry.REGULARIZERS, "toy", kind)
    method = methods.Method("toy method", "vectors")
    second = methods.Method("toy stage", "nothing", unet="attention", rank=2, refines=True)
    monkeypatch.setitem(methods.METHODS, "toy", method)
    monkeypatch.setitem(methods.METHODS, "toy-stage", second)
    for name, trained in (("Toy recipe", "toy"), ("Toy second", "toy-stage")):
        values = {"method": trained, "steps": 2, "batch": 1}
        monkeypatch.setitem(presets.PRESETS, name, presets.Preset(name, "a toy", values))
    (toy,) = [node for node in listed() if node.GET_SCHEMA().node_id == NODE]
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, NODE, toy)


def listed() -> list:
    """The nodes that the pack lists to ComfyUI."""
    return asyncio.run(pack("nodes").extension().get_node_list())


def options(node: str, name: str) -> list[str]:
    """What a node's combo offers."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[PREFIX + node].INPUT_TYPES()["required"][name][1]["options"]


def graph() -> dict:
    def call(name: str, /, **inputs: object) -> dict:
        return {"class_type": PREFIX + name, "inputs": inputs}

    model = {"model": ["model", 0], "clip": ["model", 1]}
    training = {**model, "vae": ["model", 2], "images": ["images", 0], "continue_interrupted": True, "seed": 3}
    training |= {"steps": 0, "learning_rate": 0.01, "batch": 0, "preview_every": 0, "preview_prompt": "a {}"}
    first = {"class_word": "house", "name": "toy", "train": "toy method", "recipe": "Toy recipe", "vectors": 0}
    second = {"train": "toy stage", "recipe": "Toy second", "concept": ["train", 0], "rank": 2}
    return {
        "model": call("LoadDemoModel"),
        "images": call("DemoImages", concept="castle", count=2, background="grass", seed=0),
        "toy": {"class_type": NODE, "inputs": {"weight": 0.5, "times": 3}},
        "near": call("NearestWordRegularizer", **NEAREST, regularizer=["toy", 0]),
        "train": call("TrainConcept", **training, **first, regularizer=["near", 0]),
        "refine": call("RefineConcept", **training, **second),
    }


NEAREST = {"weight": 0.01, "norm_weight": 0.0, "neighbours": 2, "temperature": 0.1, "words": 8}


def test_nodes_offer_what_is_entered_and_train_with_it(toys: None, run_graph: object) -> None:
    assert "toy method" in options("TrainConcept", "train")
    assert {"Toy recipe"} == {one for one in options("TrainConcept", "recipe") if one.startswith("Toy")}
    assert "toy stage" in options("RefineConcept", "train")
    assert {"Toy second"} == {one for one in options("RefineConcept", "recipe") if one.startswith("Toy")}
    run = run_graph(graph(), keep={name: (name, 0) for name in ("train", "refine")})
    assert run.status == "success", run.error
    concept = run.kept["train"]
    assert {"diffusion", "toy", "nearest/contrastive"} == set(concept.provenance["losses"])
    assert concept.provenance["regularizers"][0] == {"name": "toy", "weight": 0.5, "times": 3}
    assert concept.provenance["settings"]["method"] == "toy"
    assert concept.provenance["settings"]["steps"] == 2
    refined = run.kept["refine"]
    assert refined.provenance["settings"]["method"] == "toy-stage"
    assert refined.lora


def test_a_regularizer_with_a_node_of_its_own_gets_no_other(comfyui: object) -> None:
    ids = [node.GET_SCHEMA().node_id for node in listed()]
    assert len(ids) == len(set(ids))
    registry = pack("core.training.regularizers.registry")
    assert set(pack("nodes.regularizers").OWN_NODES) == set(registry.REGULARIZERS)
