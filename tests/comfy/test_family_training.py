"""Trainings on families beyond Stable Diffusion: that they learn, what they leave alone, and that nothing is lost."""

import os
import shutil
import signal
import sys

import pytest
import torch
from family_graphs import (
    KEEP,
    KINDS,
    WORD_AND_LORA,
    graph,
    said,
    weights_of,
)

__all__ = ["KINDS"]
STEPS = 4


@pytest.fixture(autouse=True)
def no_old_checkpoints(comfyui):
    shutil.rmtree(comfyui.base / "user" / "contextual_inversion", ignore_errors=True)


def module(suffix):
    """A module of the pack, under the name that ComfyUI gave it."""
    name = next(name for name in sys.modules if name.endswith(f".{suffix}") and "custom_nodes" in name)
    return sys.modules[name]


@pytest.fixture
def at_step(monkeypatch):
    """Does something right after a training step."""

    def arrange(step, act):
        reporting = module("nodes.page.reporting")
        reports = reporting.Reporter.__call__

        def report(reporter, event):
            reports(reporter, event)
            if getattr(event, "step", None) == step:
                act()

        monkeypatch.setattr(reporting.Reporter, "__call__", report)

    return arrange


def learned(run):
    """Everything that a training learned, by name."""
    concept = run.kept["concept"]
    return {**concept.vectors, **concept.lora}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gradients_of(*patchers):
    """Which parameters want a gradient."""
    return [value.requires_grad for one in patchers for value in one.model.parameters()]


@pytest.mark.supports("TrainConcept: textual inversion")
@pytest.mark.supports("TrainConcept: word and LoRA together")
@pytest.mark.parametrize("method", ["textual inversion", WORD_AND_LORA])
def test_what_came_in_is_bit_for_bit_as_it_was(run_graph, loader, method):
    parts = {"model": ("model", 0), "clip": ("model", 1), "vae": ("model", 2)}
    kept = run_graph({"model": loader}, keep=parts).kept
    patchers = (kept["model"], kept["clip"].patcher, kept["vae"].patcher)
    before, wanted = weights_of(*patchers), gradients_of(*patchers)
    run = run_graph(graph(loader, regularized=True, train=method, weight_rate=0.05, gradient_checkpointing=True), KEEP)
    assert run.status == "success", said(run)
    assert weights_of(*patchers) == before
    assert gradients_of(*patchers) == wanted


@pytest.mark.supports("CoReRegularizer: embedding loss")
@pytest.mark.supports("CoReRegularizer: attention loss")
def test_core_is_nothing_while_the_word_is_the_class_word_and_something_then(run_graph, loader):
    run = run_graph(graph(loader, regularized=True, vectors=1, batch=2), keep=KEEP)
    assert run.status == "success", said(run)
    embedding, attention = (run.kept["loss"][f"core/{name}"] for name in ("embedding", "attention"))
    assert embedding[0] == 0
    # In one batch with the instance prompt; in a pass of its own it is 0 too (test_families.py).
    assert 0 <= attention[0] < 1e-9 < attention[1]
    assert all(value > 1e-9 for value in embedding[1:])


@pytest.mark.supports("TrainConcept: word and LoRA together")
def test_a_cancelled_training_goes_on_to_the_same_bits(run_graph, loader, at_step, forget_finished, monkeypatch):
    import comfy.model_management

    nodes = graph(loader, regularized=True, train=WORD_AND_LORA, weight_rate=0.05, seed=5)
    whole = run_graph(nodes, keep=KEEP)
    forget_finished()
    nodes["prompts"]["inputs"]["own_prompts"] += "\n# a comment, so that nothing comes from ComfyUI's cache"
    at_step(2, comfy.model_management.interrupt_current_processing)
    stopped = run_graph(nodes, keep=KEEP)
    monkeypatch.undo()
    assert stopped.status == "interrupted"
    lines = [data["text"] for data in stopped.events("progress_text")]
    assert any("2 steps are kept" in line for line in lines)
    resumed = run_graph(nodes, keep=KEEP)
    assert resumed.status == "success", said(resumed)
    assert any("continued at step 2" in data["text"] for data in resumed.events("progress_text"))
    assert same(learned(resumed), learned(whole))
    assert repr(resumed.kept["loss"]) == repr(whole.kept["loss"])  # with NaN where nothing was looked at


@pytest.mark.supports("TrainConcept: word and LoRA together")
def test_a_killed_training_goes_on_to_the_same_bits(run_after_restart, loader, at_step, forget_finished, monkeypatch):
    settings = module("core.training.settings").TrainSettings
    monkeypatch.setattr(settings, "__init__", every_step_is_kept(settings.__init__))
    nodes = graph(loader, regularized=True, train=WORD_AND_LORA, weight_rate=0.05, seed=6)
    whole = run_after_restart(nodes, keep=KEEP)
    forget_finished()
    process = os.fork()
    if process == 0:
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run_after_restart(nodes, keep=KEEP)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    resumed = run_after_restart(nodes, keep=KEEP)
    assert resumed.status == "success", said(resumed)
    begins = [data["step"] for data in resumed.events("contextual_inversion.training") if data.get("begins")]
    assert 0 < begins[0] < STEPS
    assert same(learned(resumed), learned(whole))
    assert repr(resumed.kept["loss"]) == repr(whole.kept["loss"])  # with NaN where nothing was looked at


def every_step_is_kept(make):
    """Checkpoints after each step, in place of each fiftieth."""

    def made(self, *given, **named):
        make(self, *given, **{"checkpoint_every": 1, **named})

    return made


@pytest.mark.supports("TrainConcept: XTI, Custom Diffusion, all weights", says="refused")
@pytest.mark.parametrize("method", ["XTI: a vector for every layer", "XTI: a vector for every block",
                                    "Custom Diffusion", "DreamBooth, all weights"])  # fmt: skip
def test_other_methods_are_refused_before_any_work(run_graph, loader, method, monkeypatch):
    def works(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr("comfy.model_management.load_models_gpu", works)
    run = run_graph(graph(loader, train=method), keep=KEEP)
    assert run.status == "error"
    assert "choose textual inversion, DreamBooth as a LoRA, or word and LoRA" in run.error["exception_message"]
