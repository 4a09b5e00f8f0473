"""EvaluateConcept in a real graph: the figures of `core`, with the bundled encoders and with tiny CLIP and DINO."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

PREFIX = "ContextualInversion"


def call(name: str, /, **inputs: object) -> dict:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


def evaluated(**inputs: object) -> dict:
    defaults = {
        "images": ["other", 0],
        "references": ["things", 0],
        "prompts": "a photo of a {}\na {} in the snow",
        "class_word": ["things", 2],
        "clip": "bundled",
        "dino": "none",
        "background_fill": 0.5,
        "batch": 3,
    }
    return call("EvaluateConcept", **defaults | inputs)


@pytest.fixture
def graph() -> dict:
    """Three references of the goblet and four pictures of it elsewhere, with masks of both."""
    return {
        "things": call("DemoImages", concept="goblet", count=3, background="the concept's own", seed=0),
        "other": call("DemoImages", concept="goblet", count=4, background="snow", seed=5),
    }


KEEP = {
    "table": ("score", 0),
    "json": ("score", 1),
    "sheet": ("score", 2),
    "images": ("other", 0),
    "references": ("things", 0),
    "masks": ("other", 1),
    "reference_masks": ("things", 1),
    "class_word": ("things", 2),
}


def expected(kept: dict, evaluator: object, fill_masks: bool) -> dict[str, np.ndarray]:
    """The same by `core` alone."""
    from contextual_inversion.core.inspection.evaluation.pictures import as_bytes

    pictures, references = as_bytes(kept["images"]), as_bytes(kept["references"])
    masks = [mask.numpy() for mask in kept["masks"]] if fill_masks else None
    reference_masks = [mask.numpy() for mask in kept["reference_masks"]] if fill_masks else None
    word = kept["class_word"]
    captions = [f"a photo of a {word}"] * 2 + [f"a {word} in the snow"] * 2
    return evaluator.score(pictures, captions, evaluator.references(references, reference_masks), masks)


def test_the_node_gives_the_figures_of_core_with_the_bundled_encoders(run_graph, graph):
    from contextual_inversion.core.inspection.evaluation import Evaluator, bundled_clip

    graph["score"] = evaluated(masks=["other", 1], reference_masks=["things", 1])
    run = run_graph(graph, keep=KEEP)
    assert run.status == "success", run.error
    scores = expected(run.kept, Evaluator(bundled_clip(), None, fill=0.5), True)
    data = json.loads(run.kept["json"])
    assert list(data["measures"]) == ["clip_t", "clip_i", "clip_i_fg"]
    for key, values in scores.items():
        assert [picture[key] for picture in data["pictures"]] == pytest.approx(values.tolist(), abs=1e-4)
        assert data["measures"][key] == pytest.approx(values.mean(), abs=1e-4)
        assert f"{values.mean():.3f}"[:4] in run.kept["table"]
    assert data["protocol"]["background_fill"] == 0.5
    assert "background 0.5" in run.kept["table"]
    assert run.kept["table"].count("\n| ") == 4, "a head's rule, two prompts and their mean follow the head"
    assert run.kept["sheet"].shape[0] == 1
    assert float(run.kept["sheet"].std()) > 0.05
    shown = run.ui["score"]
    assert run.kept["table"] in shown["text"]
    assert len(shown["images"]) == 1


def test_clip_and_dino_are_found_in_comfyuis_folder(comfyui, run_graph, graph):
    """Random weights stand in for the real ones; the names and the folder are those that the help page gives."""
    import folder_paths

    from contextual_inversion.core.inspection.evaluation import Evaluator, load_clip, load_dino

    root = Path(folder_paths.get_folder_paths("clip_vision")[0])
    path = Path(__file__).parents[1] / "core" / "inspection" / "evaluation" / "random_encoders.py"
    spec = importlib.util.spec_from_file_location("evaluation_random_encoders", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)

    graph["score"] = evaluated(clip="auto", dino="auto")
    missing = run_graph(graph)
    assert missing.status == "error"
    said = missing.error["exception_message"]
    assert str(root / "clip-vit-base-patch32") in said
    assert "model.safetensors" in said

    made.save_clip(root / "clip-vit-base-patch32")
    made.save_dino(root / "dino-vits16")
    run = run_graph(graph, keep=KEEP)
    assert run.status == "success", run.error
    evaluator = Evaluator(load_clip(folders=[root]), load_dino(folders=[root]))
    scores, data = expected(run.kept, evaluator, False), json.loads(run.kept["json"])
    assert list(data["measures"]) == ["clip_t", "clip_i", "dino"]
    for key, values in scores.items():
        assert [picture[key] for picture in data["pictures"]] == pytest.approx(values.tolist(), abs=1e-4)
    info = comfyui.object_info({PREFIX + "EvaluateConcept"})[PREFIX + "EvaluateConcept"]
    choices = {name: info["input"]["required"][name][1]["options"] for name in ("clip", "dino")}
    assert choices["clip"][-1] == "clip-vit-base-patch32"
    assert choices["dino"][-1] == "dino-vits16"


def test_a_copied_background_earns_nothing_on_foregrounds(run_graph, graph):
    """The same things in the same place look more alike, but not on their foregrounds."""
    graph["same"] = call("DemoImages", concept="goblet", count=4, background="the concept's own", seed=5)
    found = {}
    for name in ("other", "same"):
        graph["score"] = evaluated(images=[name, 0], masks=[name, 1], reference_masks=["things", 1])
        run = run_graph(graph, keep={"json": ("score", 1)})
        assert run.status == "success", run.error
        found[name] = json.loads(run.kept["json"])["measures"]
    gained = {key: found["same"][key] - found["other"][key] for key in ("clip_i", "clip_i_fg")}
    assert gained["clip_i"] > 0.02
    assert abs(gained["clip_i_fg"]) < gained["clip_i"] / 2


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"prompts": "  \n"}, "prompts is empty"),
        ({"prompts": "a {}\na <keep> at sea"}, "CLIP does not know <keep>: write {}"),
        ({"prompts": "a embedding:my-word in the snow"}, "CLIP does not know embedding:my-word"),
        ({"prompts": "a\nb\nc"}, "4 images cannot be shared by 3 prompts"),
        ({"class_word": " "}, "class_word is empty"),
        ({"clip": "none"}, "needs CLIP or DINO"),
        ({"masks": ["other", 1]}, "connect both masks and reference_masks"),
        ({"masks": ["things", 1], "reference_masks": ["things", 1]}, "3 masks for 4 images"),
        ({"masks": ["empty", 0], "reference_masks": ["things", 1]}, "Mask 1 of the images is empty"),
        ({"masks": ["small", 0], "reference_masks": ["things", 1]}, "Mask 1 of the images is 16 x 24"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_measured(run_graph, graph, inputs, said, comfyui, monkeypatch):
    class Masks:
        INPUT_TYPES = classmethod(
            lambda cls: {"required": {"width": ("INT",), "height": ("INT",), "value": ("FLOAT",)}}
        )
        RETURN_TYPES, FUNCTION, CATEGORY = ("MASK",), "make", "test"

        def make(self, width: int, height: int, value: float) -> tuple:
            return (torch.full((4, height, width), value),)

    monkeypatch.setitem(comfyui.nodes.NODE_CLASS_MAPPINGS, "TestMasks", Masks)
    for name, size in {"empty": (128, 128, 0.0), "small": (16, 24, 1.0)}.items():
        values = dict(zip(("width", "height", "value"), size, strict=True))
        graph[name] = {"class_type": "TestMasks", "inputs": values}
    graph["score"] = evaluated(**inputs)
    run = run_graph(graph)
    assert run.status in ("error", "invalid")
    if said.endswith("is empty") and "Mask" not in said:
        assert run.status == "invalid", "what a field alone shows is said before anything runs"
    assert said in (run.error["exception_message"] if run.status == "error" else str(run.error["node_errors"]))


def test_progress_reaches_the_end(run_graph, graph):
    graph["score"] = evaluated()
    run = run_graph(graph)
    states = [data["nodes"]["score"] for data in run.events("progress_state") if "score" in data["nodes"]]
    assert states[-1]["value"] == states[-1]["max"]
    assert run.status == "success"
