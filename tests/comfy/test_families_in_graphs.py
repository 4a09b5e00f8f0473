"""Models beyond Stable Diffusion through the nodes, in a real ComfyUI."""

import pytest
import torch
from family_graphs import KEEP, KINDS, NUMBERS, SHOWN, WORD_AND_LORA, call, graph, prompt, sampler

__all__ = ["KINDS"]


@pytest.mark.supports("CoReRegularizer: embedding loss")
@pytest.mark.supports("CoReRegularizer: attention loss")
def test_core_goes_along(run_graph, loader):
    # Two pictures: the attention of a single one is not looked at in every step.
    run = run_graph(graph(loader, regularized=True, batch=2), keep=KEEP)
    assert run.status == "success", run.error
    for name in ("diffusion", "core/embedding", "core/attention"):
        assert len(run.kept["loss"][name]) == NUMBERS["steps"]
        assert all(value == value and value > 0 for value in run.kept["loss"][name][1:]), name


@pytest.mark.supports("RecordAttention, ShowAttention")
def test_recording_leaves_the_picture_as_it_is(run_graph, loader):
    """And its maps are shares: what all text tokens and the image itself draw is 1."""
    plain = {"model": loader, "positive": prompt("a red castle"), **sampler(["model", 0], ["positive", 0])}
    record = call("RecordAttention", model=["model", 0], step_bins=2, cells=8)
    watched = {**plain, "record": record, **sampler(["record", 0], ["positive", 0])}
    show = call("ShowAttention", attention=["record", 1], prompt="a red castle", latent=["sampler", 0], **SHOWN)
    show["inputs"]["clip"] = ["model", 1]
    before = run_graph(plain, keep={"latent": ("sampler", 0)})
    assert before.status == "success", before.error
    keep = {"latent": ("sampler", 0), "attention": ("record", 1), "images": ("show", 0)}
    after = run_graph({**watched, "show": show}, keep=keep)
    assert after.status == "success", after.error
    assert torch.equal(before.kept["latent"]["samples"], after.kept["latent"]["samples"])
    maps = after.kept["attention"].recorder.maps()
    for values in maps.values:
        total = values.sum(dim=2)
        assert bool(((total > 0) & (total < 1)).all())
    assert len(after.kept["images"]) == 3  # a, red, castle


@pytest.mark.supports("ApplyConcept, SaveConcept, LoadConcept, stock LoRA loader")
def test_a_word_is_applied_saved_and_loaded(run_graph, loader):
    name = f"word_of_{loader['inputs']['kind']}"
    trained = graph(loader, train=WORD_AND_LORA, weight_rate=0.05)
    applied = call(
        "ApplyConcept", model=["model", 0], clip=["model", 1], concept=["train", 0], strength_model=1.0,
        strength_clip=1.0, name="",
    )  # fmt: skip
    save = call(
        "SaveConcept", concept=["train", 0], name=name, if_taken="add a number", embedding_file=True,
        half_precision=False, lora_file=True,
    )  # fmt: skip
    whole = {**trained, "apply": applied, "save": save, "positive": prompt("a <keep> in a jar", ("apply", 1))}
    run = run_graph({**whole, **sampler(["apply", 0], ["positive", 0])}, keep={"latent": ("sampler", 0), **KEEP})
    assert run.status == "success", run.error
    load = call("LoadConcept", file=f"contextual_inversion/{name}.safetensors", clip=["model", 1])
    again = {"model": loader, "load": load, "apply": {**applied, "inputs": {**applied["inputs"]}}}
    again["apply"]["inputs"] |= {"concept": ["load", 0], "name": "keep"}
    again |= {"positive": prompt("a <keep> in a jar", ("apply", 1)), **sampler(["apply", 0], ["positive", 0])}
    loaded = run_graph(again, keep={"latent": ("sampler", 0), "concept": ("load", 0)})
    assert loaded.status == "success", loaded.error
    assert torch.equal(run.kept["latent"]["samples"], loaded.kept["latent"]["samples"])
    stock = {
        "model": loader,
        "lora": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["model", 0], "lora_name": f"{name}.safetensors", "strength_model": 1.0},
        },
        "apply": {**again["apply"], "inputs": {**again["apply"]["inputs"], "strength_model": 0.0}},
        "load": load,
        "positive": prompt("a <keep> in a jar", ("apply", 1)),
        **sampler(["lora", 0], ["positive", 0]),
    }
    by_stock = run_graph(stock, keep={"latent": ("sampler", 0)})
    assert by_stock.status == "success", by_stock.error
    assert torch.allclose(run.kept["latent"]["samples"], by_stock.kept["latent"]["samples"], atol=1e-5)
