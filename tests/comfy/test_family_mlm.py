"""A contextualizer for a text encoder beyond CLIP, and MLM with it, through the nodes."""

import shutil
import sys

import pytest
import torch
from family_graphs import KEEP, KINDS, WORD_AND_LORA, call, graph, said

__all__ = ["KINDS"]
ENCODERS = {"sd35": "clip_g", "flux": "t5xxl", "qwen_image": "qwen25_7b", "z_image": "qwen3_4b"}
AUTO = "auto (for this model)"
PRETRAIN = {
    "captions": "concept_world",
    "file": "none",
    "real_share": 0.7,
    "size": AUTO,
    "loss_mode": "masked",
    "steps": 3,
    "batch": 4,
    "learning_rate": 0.0,
    "mask_rate": 0.3,
    "held_out": 10,
    "seed": 0,
    "continue_interrupted": True,
}
MLM = {"weights": "custom", "weight": 0.2, "mask_rate": 0.5, "batch": 4, "beside_class_word": False}


@pytest.fixture(autouse=True)
def clean(comfyui):
    shutil.rmtree(comfyui.base / "user" / "contextual_inversion", ignore_errors=True)
    for file in (comfyui.base / "models" / "contextualizers").glob("*"):
        file.unlink()


def module(suffix):
    name = next(name for name in sys.modules if name.endswith(f".{suffix}") and "custom_nodes" in name)
    return sys.modules[name]


@pytest.fixture
def vocabulary_of(monkeypatch):
    """Rows in the output layer for the words of so many captions; 0: for every token of the text encoder."""
    return lambda captions: monkeypatch.setitem(
        module("core.training.contextualizer.recipes").NARROW, "vocabulary_captions", captions
    )


def pretraining(loader, **changes):
    name = ENCODERS[loader["inputs"]["kind"]]
    numbers = {"text_encoder": name, **PRETRAIN, **changes}
    return {"model": loader, "psi": call("PretrainContextualizer", clip=["model", 1], **numbers)}


def with_mlm(loader, contextualizer, **changes):
    """A training with MLM on a built-in rich set of prompts."""
    nodes = graph(loader, vectors=1, **changes)
    nodes["prompts"] = call("ContextPrompts", built_in_set="rich concept_world", own_prompts="", file="none")
    nodes["mlm"] = call("MLMRegularizer", contextualizer=contextualizer, prompts=["prompts", 0], **MLM)
    del nodes["core"]
    nodes["train"]["inputs"]["regularizer"] = ["mlm", 0]
    return nodes


@pytest.mark.supports("PretrainContextualizer, MLMRegularizer")
def test_a_contextualizer_is_pretrained_saved_loaded_and_trained_with(run_graph, loader, vocabulary_of):
    vocabulary_of(200)
    name = ENCODERS[loader["inputs"]["kind"]]
    save = call("SaveContextualizer", contextualizer=["psi", 0], name="psi", if_taken="replace", half_precision=False)
    nodes = {**pretraining(loader), "save": save, **with_mlm(loader, ["psi", 0], train=WORD_AND_LORA)}
    run = run_graph(nodes, keep={**KEEP, "psi": ("psi", 0), "report": ("psi", 2)})
    assert run.status == "success", said(run)
    psi, losses = run.kept["psi"], run.kept["loss"]
    weights = run.kept["clip"].patcher.model.state_dict()
    rows, width = next(value.shape for key, value in weights.items() if name in key and value.numel() > 10**6)
    assert (psi.encoder.name, psi.encoder.vocabulary, psi.encoder.width) == (name, rows, width)
    assert psi.mask.shape == (width,)
    assert 10 < psi.classes < 500, "the words of 200 captions, and [MASK]"
    assert "most frequent" in run.kept["report"]
    assert len(losses[f"mlm/{name}"]) == 4
    assert all(value > 0 for value in losses[f"mlm/{name}"])
    load = call("LoadContextualizer", file="psi.safetensors", clip=["model", 1])
    again = {"load": load, **with_mlm(loader, ["load", 0], train=WORD_AND_LORA)}
    loaded = run_graph(again, keep={**KEEP, "psi": ("load", 0)})
    assert loaded.status == "success", said(loaded)
    assert loaded.kept["loss"][f"mlm/{name}"] == losses[f"mlm/{name}"]
    plain = run_graph(graph(loader, vectors=1, train=WORD_AND_LORA), keep=KEEP)
    words = [one.kept["concept"].vectors[name] for one in (run, loaded, plain)]
    assert torch.equal(words[0], words[1])
    assert not torch.equal(words[0], words[2]), "MLM moves the word"


@pytest.mark.supports("PretrainContextualizer, MLMRegularizer")
@pytest.mark.parametrize("mode", ["masked", "non_padding"])
def test_logits_are_made_for_the_tokens_that_are_asked_for_alone(run_graph, loader, vocabulary_of, monkeypatch, mode):
    """With a row for every token of the vocabulary, 150,000 in Qwen's: those who reach the output layer are counted,
    in the pretraining and in MLM."""
    vocabulary_of(0)
    reached, asked, masks = [], [], module("core.training.contextualizer.masking").mask_rows

    def counted(rows, uniform, rho):
        batch = masks(rows, uniform, rho)
        ends = sum(row.end + 1 for row in rows)
        asked.append((len(batch.targets), ends, batch.ids.numel()))
        return batch

    for user in ("core.training.contextualizer.pretraining", "core.training.regularizers.mlm"):
        monkeypatch.setattr(module(user), "mask_rows", counted)

    def note(layer, given):
        if isinstance(layer, torch.nn.Linear) and layer.out_features > 10_000:
            reached.append(given[0].numel() // layer.in_features)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        run = run_graph(pretraining(loader, loss_mode=mode, steps=1, held_out=10), keep={"psi": ("psi", 0)})
        assert run.status == "success", said(run)
        psi = run.kept["psi"]
        assert psi.classes == psi.encoder.vocabulary + 1
        hidden, there, places = asked[-1]
        assert reached[0] == (hidden if mode == "masked" else there)
        assert hidden < there < places
        reached.clear()
        asked.clear()
        run = run_graph({**pretraining(loader, loss_mode=mode, steps=1, held_out=10),
                         **with_mlm(loader, ["psi", 0], steps=2)}, keep=KEEP)  # fmt: skip
        assert run.status == "success", said(run)
        assert reached == [hidden for hidden, *_ in asked]
    finally:
        hook.remove()
