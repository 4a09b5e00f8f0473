"""Models beyond Stable Diffusion through the nodes, in a real ComfyUI."""

import pytest
import torch
from family_graphs import CROSS, EVERY, KEEP, NUMBERS, SHOWN, WORD_AND_LORA, call, graph, prompt, said, sampler, side_of

KINDS = EVERY
LEARNING = {"omnigen2": (96, 0.95), "aura_flow": (24, None)}
"""Steps, and the share of the loss that is left: the tiny OmniGen2 learns slowly by its attention (0.91 measured), and
AuraFlow's nothing that shows (0.98 in 100 steps); that their gradients are right test_families holds."""


@pytest.mark.supports("TrainConcept: textual inversion")
@pytest.mark.supports("TrainConcept: word and LoRA together")
def test_word_and_lora_learn_one_picture(run_graph, loader):
    """Noise drawn anew at each step; `test_family_learning` measures on noise that is always the same."""
    steps, share = LEARNING.get(loader["inputs"]["kind"], (24, 0.85))
    numbers = {"steps": steps, "weight_rate": 0.02, "learning_rate": 0.02, "vectors": 1, "rank": 8}
    run = run_graph(graph(loader, train=WORD_AND_LORA, **numbers), keep=KEEP)
    assert run.status == "success", run.error
    losses = torch.tensor(run.kept["loss"]["diffusion"])
    quarter = steps // 4
    assert share is None or losses[-quarter:].mean() < share * losses[:quarter].mean()
    concept = run.kept["concept"]
    assert all(value.shape[0] == 1 for value in concept.vectors.values())
    assert any(key.endswith("lora_up.weight") and bool((value != 0).any()) for key, value in concept.lora.items())


@pytest.mark.supports("TrainConcept: XTI, Custom Diffusion, all weights", says="refused")
def test_what_such_a_model_cannot_do_is_refused_in_words(run_graph, loader):
    for method in ("XTI: a vector for every layer", "Custom Diffusion", "DreamBooth, all weights"):
        run = run_graph(graph(loader, train=method), keep=KEEP)
        assert run.status == "error"
        assert "choose textual inversion" in said(run), method


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
    side = side_of(loader)
    plain = {"model": loader, "positive": prompt("a red castle"), **sampler(["model", 0], ["positive", 0], side)}
    record = call("RecordAttention", model=["model", 0], step_bins=2, cells=8)
    watched = {**plain, "record": record, **sampler(["record", 0], ["positive", 0], side)}
    show = call("ShowAttention", attention=["record", 1], prompt="a red castle", latent=["sampler", 0], **SHOWN)
    show["inputs"]["clip"] = ["model", 1]
    before = run_graph(plain, keep={"latent": ("sampler", 0)})
    assert before.status == "success", before.error
    keep = {"latent": ("sampler", 0), "attention": ("record", 1), "images": ("show", 0)}
    after = run_graph({**watched, "show": show}, keep=keep)
    assert after.status == "success", after.error
    assert torch.equal(before.kept["latent"]["samples"], after.kept["latent"]["samples"])
    cross = loader["inputs"]["kind"] in CROSS
    maps = after.kept["attention"].recorder.maps()
    for values in maps.values:
        total = values.sum(dim=2)
        assert bool((total > 0).all())
        # In cross-attention there is no image to look at.
        assert torch.allclose(total, torch.ones(())) if cross else bool((total < 1).all())
    assert len(after.kept["images"]) == 3  # a, red, castle


@pytest.mark.supports("ApplyConcept, SaveConcept, LoadConcept, stock LoRA loader")
def test_a_word_is_applied_saved_and_loaded(run_graph, loader):
    name, side = f"word_of_{loader['inputs']['kind']}", side_of(loader)
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
    run = run_graph({**whole, **sampler(["apply", 0], ["positive", 0], side)}, keep={"latent": ("sampler", 0), **KEEP})
    assert run.status == "success", run.error
    load = call("LoadConcept", file=f"contextual_inversion/{name}.safetensors", clip=["model", 1])
    again = {"model": loader, "load": load, "apply": {**applied, "inputs": {**applied["inputs"]}}}
    again["apply"]["inputs"] |= {"concept": ["load", 0], "name": "keep"}
    again |= {
        "positive": prompt("a <keep> in a jar", ("apply", 1)),
        **sampler(["apply", 0], ["positive", 0], side),
    }
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
        **sampler(["lora", 0], ["positive", 0], side),
    }
    by_stock = run_graph(stock, keep={"latent": ("sampler", 0)})
    assert by_stock.status == "success", by_stock.error
    assert torch.allclose(run.kept["latent"]["samples"], by_stock.kept["latent"]["samples"], atol=1e-5)


def test_a_picture_too_small_for_a_family_is_refused_in_words(run_graph, loader):
    run = run_graph(graph(loader, resolution=min(256, side_of(loader))), keep=KEEP)
    if loader["inputs"]["kind"] != "pixart":
        assert run.status == "success"
    else:
        assert "pictures of more than 256 pixels a side, not of 256" in run.error["exception_message"]
