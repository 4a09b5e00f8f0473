"""TrainConcept in a real ComfyUI: what it gives, what it leaves alone, and what becomes of it when it is cancelled."""

import hashlib
import shutil
import struct
import sys

import pytest
import torch

PREFIX = "ContextualInversion"
STEPS = 6
NUMBERS = {"steps": STEPS, "learning_rate": 0.02, "batch": 2, "vectors": 2, "seed": 3}
FIXED = {"name": "keep", "train": "textual inversion", "recipe": "auto (for this model)", "continue_interrupted": True}
QUIET = {"preview_every": 0, "preview_prompt": "a photo of a {}"}


def call(name: str, /, **inputs: object) -> dict:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


def graph(regularized: bool = True, **changes: object) -> dict:
    """Model, two pictures, CoRe and a short training."""
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    sockets |= {"regularizer": ["core", 0]} if regularized else {}
    core = {"weights": "custom", "embedding_weight": 0.05, "attention_weight": 0.5, "rescale_mode": "as the recipe"}
    core |= {"embedding_axis": "paper", "attention_mode": "official", "attention_batch": 0}
    return {
        "model": call("LoadDemoModel"),
        "images": call("DemoImages", concept="castle", count=2, background="grass", seed=0),
        "prompts": call("ContextPrompts", built_in_set="none", own_prompts="a {} in a jar\na red {}", file="none"),
        "core": call("CoReRegularizer", prompts=["prompts", 0], **core),
        "train": call("TrainConcept", **sockets, class_word="house", **FIXED | NUMBERS | QUIET | changes),
    }


KEEP = {"concept": ("train", 0), "loss": ("train", 1)}
PARTS = {"model": ("model", 0), "clip": ("model", 1), "vae": ("model", 2)}


def pack_name() -> str:
    """The name under which ComfyUI has imported this pack."""
    suffix = ".nodes.training"
    return next(name for name in sys.modules if name.endswith(suffix) and "custom_nodes" in name)[: -len(suffix)]


def texts(run: object) -> list[str]:
    """The lines that appeared on the training node."""
    return [data["text"] for data in run.events("progress_text") if data["node"] == "train"]


def vectors(run: object) -> torch.Tensor:
    return run.kept["concept"].vectors["clip_l"]


SET_BY_LOADING = {"bias_function", "weight_function", "comfy_force_cast_weights", "comfy_patched_weights"}
"""What ComfyUI itself writes on a layer when it loads the model for any node."""


def state_of(kept: dict) -> dict[str, object]:
    """Everything about MODEL, CLIP and VAE that a training could leave changed."""
    state: dict[str, object] = {}
    for name, patcher in (("model", kept["model"]), ("clip", kept["clip"].patcher), ("vae", kept["vae"].patcher)):
        digest = hashlib.sha256()
        for key, value in patcher.model.state_dict().items():
            digest.update(key.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
        modules = list(patcher.model.modules())
        state[name] = (
            digest.hexdigest(),
            dict(patcher.patches),
            repr(patcher.model_options),
            dict(patcher.object_patches),
            {key: dict(value) for key, value in patcher.wrappers.items()},
            patcher.weight_wrapper_patches,
            {str(value.device) for value in patcher.model.parameters()},
            {(id(value), value.requires_grad, value.is_inference()) for value in patcher.model.parameters()},
            [(part.training, sorted(set(vars(part)) - SET_BY_LOADING)) for part in modules],
            [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in modules],
        )
    return state


def checkpoints(comfyui: object) -> list[str]:
    root = comfyui.base / "user" / "contextual_inversion" / "checkpoints"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.safetensors"))


@pytest.fixture(autouse=True)
def no_old_checkpoints(comfyui):
    shutil.rmtree(comfyui.base / "user" / "contextual_inversion", ignore_errors=True)


@pytest.fixture
def cancel_at(monkeypatch):
    """Presses Cancel right after the given training step."""

    def arrange(step: int) -> None:
        import comfy.model_management

        reporting = sys.modules[f"{pack_name()}.nodes.page.reporting"]
        reports = reporting.Reporter.__call__

        def report(reporter: object, event: object) -> None:
            reports(reporter, event)
            if getattr(event, "step", None) == step:
                comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(reporting.Reporter, "__call__", report)

    return arrange


def test_a_training_gives_a_concept_and_its_losses(run_graph, comfyui):
    run = run_graph({**graph(), "plot": plot()}, keep=KEEP)
    assert run.status == "success", run.error
    concept, losses = run.kept["concept"], run.kept["loss"]
    assert (concept.name, concept.class_word) == ("keep", "house")
    assert vectors(run).shape == (2, 128)
    assert not vectors(run).is_inference()
    assert concept.provenance["steps"] == STEPS
    assert concept.provenance["regularizers"][0]["embedding_weight"] == 0.05
    for name in ("loss", "diffusion", "core/embedding", "core/attention"):
        assert len(losses[name]) == STEPS
        assert all(value == value and value > 0 for value in losses[name])
    assert len(run.ui["plot"]["images"]) == 1
    assert checkpoints(comfyui) == []
    assert any("learned <keep>" in text for text in texts(run))


def test_vectors_are_as_the_recipe_says_unless_given_or_those_of_a_concept(run_graph):
    run = run_graph(graph(regularized=False, vectors=0, steps=1), keep=KEEP)
    assert run.status == "success", run.error
    wanted = sys.modules[f"{pack_name()}.core.training.presets"].DEMO.values["vectors"]
    assert vectors(run).shape == (wanted, 128)
    assert wanted > 1
    one = graph(regularized=False, vectors=0, steps=1)
    one["train"]["inputs"] |= {"concept": ["short", 0]}
    one["short"] = graph(regularized=False, vectors=1, steps=1)["train"]
    short = run_graph(one, keep={**KEEP, "short": ("short", 0)})
    assert short.status == "success", short.error
    assert short.kept["short"].length == short.kept["concept"].length == 1


def plot() -> dict:
    return {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": "loss"}}


def test_progress_arrives_while_it_runs(run_graph, monkeypatch):
    import comfy.utils

    sent: list[tuple] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *values, node_id: sent.append((*values, node_id)))
    run = run_graph(graph(regularized=False, preview_every=4), keep=KEEP)
    assert run.status == "success", run.error
    values = [value for value, *_ in sent]
    assert values == sorted(values)
    assert values[-1] == STEPS
    assert {(total, node_id) for _, total, _, node_id in sent} == {(STEPS, "train")}


def test_what_came_in_is_as_it_was(run_graph):
    first = run_graph(graph(), keep=PARTS)
    before = state_of(first.kept)
    run = run_graph(graph(preview_every=5), keep=KEEP | PARTS)
    assert run.status == "success", run.error
    assert "train" in run.executed
    assert state_of(run.kept) == before


def test_the_same_graph_is_trained_once(run_graph):
    first = run_graph(graph(), keep=KEEP)
    again = run_graph(graph(), keep=KEEP)
    assert "train" in first.executed
    assert again.executed == []
    assert torch.equal(vectors(first), vectors(again))
    other = run_graph(graph(seed=4), keep=KEEP)
    assert other.executed == ["train"]
    assert not torch.equal(vectors(first), vectors(other))


@pytest.mark.parametrize("step", [1, 4])
def test_a_cancelled_training_goes_on_to_the_same_word(
    run_graph, comfyui, cancel_at, forget_finished, monkeypatch, step
):
    whole = run_graph(graph(seed=5), keep=KEEP)
    forget_finished()
    before = state_of(run_graph(graph(), keep=PARTS).kept)
    prompt = graph(seed=5)
    # A comment in another node keeps ComfyUI from serving the first result, and changes nothing that is trained.
    prompt["prompts"]["inputs"]["own_prompts"] += f"\n# cancelled at {step}"
    cancel_at(step)
    stopped = run_graph(prompt, keep=KEEP)
    monkeypatch.undo()
    assert stopped.status == "interrupted"
    assert "concept" not in stopped.kept
    assert any(f"{step} steps are kept" in text for text in texts(stopped))
    assert len(checkpoints(comfyui)) == 1
    assert state_of(run_graph(graph(), keep=PARTS).kept) == before

    resumed = run_graph(prompt, keep=KEEP)
    assert resumed.status == "success", resumed.error
    assert any(f"continued at step {step}" in text for text in texts(resumed))
    assert torch.equal(vectors(resumed), vectors(whole))
    assert resumed.kept["loss"] == whole.kept["loss"]
    assert checkpoints(comfyui) == []


def test_other_inputs_do_not_continue_a_cancelled_training(run_graph, comfyui, cancel_at, monkeypatch):
    cancel_at(2)
    assert run_graph(graph(seed=6), keep=KEEP).status == "interrupted"
    monkeypatch.undo()
    other = run_graph(graph(seed=7), keep=KEEP)
    assert not any("continued" in text for text in texts(other))
    assert len(checkpoints(comfyui)) == 1, "the cancelled one still waits"
    fresh = run_graph(graph(seed=6, continue_interrupted=False), keep=KEEP)
    assert fresh.status == "success", fresh.error
    assert not any("continued" in text for text in texts(fresh))
    assert checkpoints(comfyui) == []


def test_another_vae_begins_again(run_graph, comfyui, cancel_at, monkeypatch):
    """Its latents are others, so the steps so far were about other pictures."""
    cancel_at(2)
    cancelled = run_graph(graph(seed=6), keep=KEEP | PARTS)
    assert cancelled.status == "interrupted"
    monkeypatch.undo()
    with torch.inference_mode():  # ComfyUI has the node's output still, and this is it
        next(value for value in cancelled.kept["vae"].first_stage_model.parameters() if value.ndim > 1).mul_(1.01)
    run = run_graph(graph(seed=6), keep=KEEP)
    assert run.status == "success", run.error
    assert not any("continued" in text for text in texts(run))
    assert len(checkpoints(comfyui)) == 1, "the cancelled one still waits"


def test_a_damaged_checkpoint_means_beginning_again(run_graph, comfyui, cancel_at, monkeypatch):
    whole = run_graph(graph(seed=8, regularized=False), keep=KEEP)
    prompt = graph(seed=8, regularized=False)
    prompt["train"]["inputs"]["preview_every"] = 5
    cancel_at(2)
    assert run_graph(prompt, keep=KEEP).status == "interrupted"
    monkeypatch.undo()
    root = comfyui.base / "user" / "contextual_inversion" / "checkpoints"
    for path in root.rglob("*.safetensors"):
        path.write_bytes(struct.pack("<Q", 2**40) + b"{")
    run = run_graph(prompt, keep=KEEP)
    assert run.status == "success", run.error
    assert torch.equal(vectors(run), vectors(whole))


def test_an_error_inside_leaves_everything_as_it_was_and_keeps_the_work(run_graph, comfyui, monkeypatch):
    before = state_of(run_graph(graph(), keep=PARTS).kept)
    learner = sys.modules[f"{pack_name()}.core.training.learner"].Learner
    real, count = learner.step, {"calls": 0}

    def fail(*arguments: object, **options: object) -> object:
        count["calls"] += 1
        if count["calls"] == 4:
            raise RuntimeError("the disk is on fire")
        return real(*arguments, **options)

    monkeypatch.setattr(learner, "step", fail)
    run = run_graph(graph(seed=9), keep=KEEP | PARTS)
    monkeypatch.undo()
    assert run.status == "error"
    assert "the disk is on fire" in run.error["exception_message"]
    assert len(checkpoints(comfyui)) == 1
    assert state_of(run_graph(graph(), keep=PARTS).kept) == before
    resumed = run_graph(graph(seed=9), keep=KEEP)
    assert any("continued at step 3" in text for text in texts(resumed))
    assert checkpoints(comfyui) == []


def test_a_concept_can_be_trained_further(run_graph):
    prompt = graph(regularized=False)
    more = prompt["train"]["inputs"] | {"concept": ["train", 0], "seed": 10, "vectors": 1}
    prompt["more"] = {"class_type": PREFIX + "TrainConcept", "inputs": more}
    run = run_graph(prompt, keep={"concept": ("train", 0), "more": ("more", 0)})
    assert run.status == "success", run.error
    start, end = run.kept["concept"].vectors["clip_l"], run.kept["more"].vectors["clip_l"]
    assert start.shape == end.shape == (2, 128), "a concept keeps its number of vectors"
    assert not torch.equal(start, end)
    cosine = torch.cosine_similarity(start, end, dim=-1)
    assert cosine.min() > 0.5, "it starts where the other one ended"


def test_without_a_regularizer_the_length_is_free(run_graph):
    plain = run_graph(graph(regularized=False), keep=KEEP)
    core = run_graph(graph(), keep=KEEP)
    assert plain.kept["concept"].provenance["settings"]["norm_mode"] == "none"
    assert core.kept["concept"].provenance["settings"]["norm_mode"] == "core_window"
    assert plain.kept["concept"].provenance["regularizers"] == []


def test_masks_reach_the_loss(run_graph):
    prompt = graph(regularized=False)
    prompt["train"]["inputs"]["masks"] = ["images", 1]
    masked = run_graph(prompt, keep=KEEP)
    assert masked.status == "success", masked.error
    assert masked.kept["loss"]["loss"] != run_graph(graph(regularized=False), keep=KEEP).kept["loss"]["loss"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preview_every": 2, "preview_prompt": "no place"}, "{}"),
        ({"prior_preservation": 1.0}, "changes no weights"),
        ({"recipe": "Custom Diffusion (MLM paper)"}, "is for Custom Diffusion"),
        ({"recipe": "Demo model", "train": "DreamBooth, LoRA"}, "what is trained is DreamBooth, LoRA"),
    ],
)
def test_what_cannot_be_trained_is_said_before_it_starts(run_graph, comfyui, changes, said):
    prompt = graph(regularized=False)
    prompt["train"]["inputs"] |= changes
    run = run_graph(prompt, keep=KEEP)
    assert run.status == "error"
    assert said in run.error["exception_message"]
    assert checkpoints(comfyui) == []


NAMES = {"../escape": "'/'", "my word": "' '", "NUL": "reserved", "a\\b": "'\\\\'", "x.safetensors": "file ending"}
NAMES |= {"/abs": "'/'", "": "empty", "  ": "empty", ".": "dot", "\ud800": "holds", "x" * 300: "300 characters"}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_nothing_can_have_does_not_even_queue(run_graph, name):
    run = run_graph(graph(regularized=False, name=name), keep=KEEP)
    assert run.status == "invalid"
    # ComfyUI marks every field that the node looks at before the run.
    for error in run.error["node_errors"]["train"]["errors"]:
        assert NAMES[name] in error["details"]
        assert len(error["details"]) < 400


def test_a_class_word_of_nothing_does_not_even_queue(run_graph):
    prompt = graph(regularized=False)
    prompt["train"]["inputs"]["class_word"] = "  "
    run = run_graph(prompt, keep=KEEP)
    assert run.status == "invalid"
    assert "class_word is empty" in run.error["node_errors"]["train"]["errors"][0]["details"]


def test_a_name_from_another_node_is_looked_at_when_it_is_known(run_graph):
    prompt = graph(regularized=False, name=["text", 0], steps=1)
    prompt["text"] = {"class_type": "PrimitiveString", "inputs": {"value": "linked"}}
    run = run_graph(prompt, keep=KEEP)
    assert run.status == "success", run.error
    assert run.kept["concept"].name == "linked"
    prompt["text"]["inputs"]["value"] = "../escape"
    run = run_graph(prompt, keep=KEEP)
    assert run.status == "error"
    assert "'/'" in run.error["exception_message"]


def test_numbers_out_of_range_do_not_even_queue(run_graph):
    assert run_graph(graph(steps=-1), keep=KEEP).status == "invalid"
    assert run_graph(graph(recipe="nonsense"), keep=KEEP).status == "invalid"


def test_memory_is_saved_without_another_word_and_the_resolution_is_what_is_asked_for(run_graph):
    def word(**changes: object) -> torch.Tensor:
        run = run_graph(graph(**{"steps": 2, **changes}), keep=KEEP)
        assert run.status == "success", run.error
        assert run.kept["concept"].provenance["settings"]["resolution"] == changes.get("resolution")
        return vectors(run)

    whole = word()
    torch.testing.assert_close(word(gradient_checkpointing=True), whole, rtol=1e-4, atol=1e-5)
    assert (word(resolution=64) - whole).abs().max() > 1e-3


def test_what_load_image_says_of_a_cut_out_puts_it_on_white(run_graph, comfyui):
    """The two ways into a training agree: the command reads the file on white, the graph has its transparency."""
    from PIL import Image

    from contextual_inversion.core.files.pictures import read_as_tensor

    cut_out = torch.zeros(128, 160, 4, dtype=torch.uint8)
    cut_out[30:90, 40:110] = torch.tensor([200, 30, 60, 255], dtype=torch.uint8)
    cut_out[30:60, 40:110, 1] = 150
    file = comfyui.base / "input" / "cut_out.png"
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(cut_out.numpy()).save(file)
    read = read_as_tensor(file)

    def learned(images: list, **changes: object) -> torch.Tensor:
        prompt = graph(regularized=False, **{"steps": 2, **changes})
        prompt["train"]["inputs"]["images"] = images
        prompt["load"] = {"class_type": "LoadImage", "inputs": {"image": "cut_out.png"}}
        prompt["white"] = {"class_type": "TestRead", "inputs": {}}
        run = run_graph(prompt, keep=KEEP)
        assert run.status == "success", run.error
        return vectors(run)

    class TestRead:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "read", "test"

        def read(self) -> tuple:
            return (read[None],)

    comfyui.nodes.NODE_CLASS_MAPPINGS["TestRead"] = TestRead
    try:
        as_loaded = learned(["load", 0], masks=["load", 1], masks_mean="transparency, on white")
        on_white = learned(["white", 0])
        assert torch.equal(as_loaded, on_white)
        assert not torch.equal(learned(["load", 0]), on_white)
    finally:
        del comfyui.nodes.NODE_CLASS_MAPPINGS["TestRead"]


def test_a_folder_of_pictures_and_texts_is_one_training_on_both(run_graph, comfyui):
    """ComfyUI's own Load Image-Text node gives a list of pictures and a list of texts."""
    from PIL import Image

    folder = comfyui.base / "input" / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, side in (("a", 128), ("b", 160)):
        Image.new("RGB", (side, 128), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name} house\nthe {{}} of {name}")
    prompt = graph(regularized=False)
    prompt["load"] = {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": "pairs"}}
    prompt["train"]["inputs"] |= {"images": ["load", 0], "captions": ["load", 1]}
    run = run_graph(prompt, keep=KEEP)
    assert run.status == "success", run.error
    said = run.kept["concept"].provenance["settings"]["captions"]
    assert sorted(map(list, said)) == [["a {}", "the {} of a"], ["b {}", "the {} of b"]]


def test_each_picture_has_its_own_line_of_captions(run_graph, caplog):
    run = run_graph(graph(regularized=False, captions="a {} on a table\nthe House, red\n"), keep=KEEP)
    assert run.status == "success", run.error
    said = run.kept["concept"].provenance["settings"]["captions"]
    assert [list(one) for one in said] == [["a {} on a table"], ["the {}, red"]]
    other = run_graph(graph(regularized=False, captions="nothing of it\nthe house " + "and more " * 80), keep=KEEP)
    plain = run_graph(graph(regularized=False), keep=KEEP)
    assert torch.equal(vectors(other), vectors(plain)), "without a caption that can be used the recipe's prompts count"
    assert not torch.equal(vectors(run), vectors(plain))
    assert any("of picture 1" in line for line in caplog.messages)
    assert any("does not fit" in line for line in caplog.messages)
    failed = run_graph(graph(regularized=False, captions="a {}"), keep=KEEP)
    assert failed.status == "error"
    assert "2 pictures have captions for 1" in failed.error["exception_message"]


def test_a_regularizer_in_every_third_step(run_graph):
    """What the page shows has no number where there is none, never 0; and where nothing is changed nothing is."""
    always, one = (run_graph(graph(**changes), keep=KEEP) for changes in ({}, {"regularize_every": 1}))
    assert torch.equal(vectors(always), vectors(one))
    run = run_graph(graph(regularize_every=3), keep=KEEP)
    assert run.status == "success", run.error
    assert run.kept["concept"].provenance["settings"]["regularize_every"] == 3
    assert not torch.equal(vectors(run), vectors(always))
    curves = run.ui["train"]["contextual_inversion_training"][0]["losses"]
    assert [value is None for value in curves["core/attention"]] == [False, True, True] * 2
    assert None not in curves["diffusion"]
    assert len(run.kept["loss"]["loss"]) == STEPS
    refused = run_graph(graph(regularize_every=STEPS + 1), keep=KEEP)
    assert refused.status == "error"
    assert f"{STEPS} is the most" in refused.error["exception_message"]
