"""The sheet in a real graph: lists and batches, rows by their sockets, a file that is kept, and errors with words."""

import json

import pytest
import torch
from PIL import Image

PREFIX = "ContextualInversion"
GIVEN = {"labels": "before | after", "title": "", "side": 64, "save": True}


def empty(colour, count=3):
    return {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": count, "color": colour}}


def graph(**inputs):
    sheet = {"class_type": f"{PREFIX}ResultSheet", "inputs": {**GIVEN, "images": ["a", 0], **inputs}}
    return {"a": empty(0xFF0000), "b": empty(0x0000FF), "one": empty(0x00FF00, 1), "sheet": sheet}


def area(sheet, colour):
    return int((sheet == torch.tensor(colour)).all(-1).sum())


def test_rows_come_from_sockets_and_prompts_from_a_list(run_graph, comfyui):
    given = graph(images_2=["b", 0], prompts=["list", 0])
    for number, text in enumerate(("in the water", "at night", "on lava")):
        given[f"p{number}"] = {"class_type": "PrimitiveString", "inputs": {"value": text}}
    given["list"] = {"class_type": "CreateList", "inputs": {f"inputs.input{k}": [f"p{k}", 0] for k in range(3)}}
    run = run_graph(given, keep={"sheet": ("sheet", 0)})
    assert run.status == "success", run.error
    (sheet,) = run.kept["sheet"]
    assert area(sheet, (1.0, 0.0, 0.0)) == area(sheet, (0.0, 0.0, 1.0)) == 3 * 64 * 64
    (shown,) = run.ui["sheet"]["images"]
    assert shown["type"] == "output"
    with Image.open(comfyui.base / "output" / shown["filename"]) as kept:
        assert kept.size == (sheet.shape[1], sheet.shape[0])
        assert json.loads(kept.info["prompt"])["sheet"]["class_type"] == f"{PREFIX}ResultSheet"


def test_a_list_of_pictures_is_one_row(run_graph):
    given = graph(images=["list", 0], labels="", save=False)
    given["list"] = {"class_type": "CreateList", "inputs": {f"inputs.input{k}": ["one", 0] for k in range(4)}}
    run = run_graph(given, keep={"sheet": ("sheet", 0)})
    assert run.status == "success", run.error
    (sheet,) = run.kept["sheet"]
    assert area(sheet, (0.0, 1.0, 0.0)) == 4 * 64 * 64
    assert [image["type"] for image in run.ui["sheet"]["images"]] == ["temp"]


def test_a_label_belongs_to_its_socket(run_graph):
    """Without images_2 the second label is nobody's: the third row keeps the third."""
    keep = {"sheet": ("sheet", 0)}
    with_gap = run_graph(graph(images_3=["b", 0], labels="a | unused | c", save=False), keep=keep).kept["sheet"]
    packed = run_graph(graph(images_2=["b", 0], labels="a | c", save=False), keep=keep).kept["sheet"]
    assert torch.equal(with_gap, packed)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [({"images_2": ["one", 0]}, "before: 3, after: 1"), ({"prompts": ["p", 0]}, "cannot be shared by 2 prompts")],
)
def test_what_does_not_fit_is_said(run_graph, inputs, said):
    given = graph(**inputs)
    given["p"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "in the water\nat night"}}
    run = run_graph(given, keep={"sheet": ("sheet", 0)})
    assert run.status == "error"
    assert said in run.error["exception_message"]
