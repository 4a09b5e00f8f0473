"""The contextualizer's and MLM's nodes in a real ComfyUI: pretrained, cancelled, saved, loaded, and trained with."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

PREFIX = "ContextualInversion"
BUNDLED = "bundled: demo model"
PRETRAIN = {
    "text_encoder": "auto (for this model)",
    "captions": "concept_world",
    "file": "none",
    "real_share": 0.7,
    "size": "auto (for this model)",
    "loss_mode": "non_padding",
    "steps": 4,
    "batch": 4,
    "learning_rate": 0.0,
    "mask_rate": 0.3,
    "held_out": 10,
    "seed": 0,
    "continue_interrupted": True,
}
MLM = {"weights": "custom", "weight": 0.2, "mask_rate": 0.5, "batch": 4, "beside_class_word": False}


def call(name: str, /, **inputs: object) -> dict:
    """The prompt entry of one of this pack's nodes."""
    return {"class_type": PREFIX + name, "inputs": inputs}


def prompts(built_in: str = "rich concept_world", own: str = "", **others: object) -> dict:
    return call("ContextPrompts", built_in_set=built_in, own_prompts=own, file="none", **others)


def pretraining(**changes: object) -> dict:
    return {
        "model": call("LoadDemoModel"),
        "psi": call("PretrainContextualizer", clip=["model", 1], **PRETRAIN | changes),
    }


def pack_name() -> str:
    """The name under which ComfyUI has imported this pack."""
    suffix = ".nodes.contextualizers"
    return next(name for name in sys.modules if name.endswith(suffix) and "custom_nodes" in name)[: -len(suffix)]


def weights(psi: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in psi.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(autouse=True)
def empty_folders(comfyui):
    shutil.rmtree(comfyui.base / "user" / "contextual_inversion", ignore_errors=True)
    # The folder itself stays: ComfyUI remembers when it was last changed.
    for file in (comfyui.base / "models" / "contextualizers").glob("*"):
        file.unlink()


@pytest.fixture
def small_vocabulary(monkeypatch, comfyui):
    """Counting the words of 20,000 captions would take most of these tests' time."""
    recipes = sys.modules[f"{pack_name()}.core.training.contextualizer.recipes"]
    monkeypatch.setitem(recipes.NARROW, "vocabulary_captions", 200)


KEEP = {"psi": ("psi", 0), "loss": ("psi", 1), "report": ("psi", 2)}


def unfinished(comfyui):
    """Checkpoints of work that is not at its end; what is, waits until it is saved."""
    return [file for file in (comfyui.base / "user").rglob("*.safetensors") if "finished" not in file.parts]


def test_a_pretraining_gives_a_contextualizer_its_losses_and_a_report(run_graph, comfyui, small_vocabulary):
    run = run_graph(pretraining(), keep={**KEEP, "clip": ("model", 1)})
    assert run.status == "success", run.error
    psi = run.kept["psi"]
    assert (psi.encoder.name, psi.encoder.width, psi.shape.attentions) == ("clip_l", 128, 2)
    assert psi.provenance["steps"] == 4
    assert not any(value.requires_grad or value.is_inference() for value in psi.parameters())
    assert len(run.kept["loss"]["loss"]) == len(run.kept["loss"]["masked accuracy"]) == 4
    assert "most frequent" in run.kept["report"]
    assert "context shuffled" in run.kept["report"]
    said = [data["text"] for data in run.events("progress_text")]
    assert any("4 steps" in text for text in said)
    assert unfinished(comfyui) == []
    again = run_graph(pretraining(), keep={**KEEP, "clip": ("model", 1)})
    assert again.status == "success", again.error
    assert "psi" not in again.executed


@pytest.fixture
def cancelled_at_two(comfyui, monkeypatch):
    """A pretraining is cancelled after its second step while `cancel` is true; `started` has where each one began."""
    import comfy.model_management

    reporting = sys.modules[f"{pack_name()}.nodes.page.reporting"]
    reports, seen = reporting.Reporter.__call__, SimpleNamespace(cancel=True, started=[])

    def report(reporter: object, event: object) -> None:
        reports(reporter, event)
        if hasattr(event, "first_step"):
            seen.started.append(event.first_step)
        if seen.cancel and getattr(event, "step", None) == 2:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(reporting.Reporter, "__call__", report)
    return seen


@pytest.mark.parametrize("mode", ["masked", "non_padding"])
def test_a_cancelled_pretraining_goes_on_to_the_same_contextualizer(
    run_graph, comfyui, small_vocabulary, cancelled_at_two, mode
):
    started = cancelled_at_two.started
    graph = pretraining(loss_mode=mode)
    assert run_graph(graph, keep=KEEP).status == "interrupted"
    assert len(unfinished(comfyui)) == 1
    cancelled_at_two.cancel = False
    resumed = run_graph(graph, keep=KEEP)
    assert resumed.status == "success", resumed.error
    assert unfinished(comfyui) == []
    whole = run_graph(pretraining(loss_mode=mode, continue_interrupted=False), keep=KEEP)
    assert started == [0, 2, 0]
    assert same(weights(resumed.kept["psi"]), weights(whole.kept["psi"]))
    assert resumed.kept["loss"] == whole.kept["loss"]


def test_what_changes_the_text_encoder_makes_it_another_pretraining(run_graph, small_vocabulary, cancelled_at_two):
    """A checkpoint was gone on with whatever LoRA was on the CLIP by then, and whatever layer was read."""
    started = cancelled_at_two.started
    skipping = call("PretrainContextualizer", clip=["skip", 0], **PRETRAIN)
    skip = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["model", 1], "stop_at_clip_layer": -2}}
    assert run_graph(pretraining(), keep=KEEP).status == "interrupted"
    assert run_graph({**pretraining(), "skip": skip, "psi": skipping}, keep=KEEP).status == "interrupted"

    clip = run_graph({"model": call("LoadDemoModel")}, keep={"clip": ("model", 1)}).kept["clip"]
    session = sys.modules[f"{pack_name()}.nodes.comfy.clip_session"]
    contents = {session.content_of(session.encoders_of(clip)["clip_l"])}
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    for strength in (0.5, 1.0):
        patched = clip.clone()
        patched.patcher.add_patches({key: (torch.ones(1),)}, strength)
        contents.add(session.content_of(session.encoders_of(patched)["clip_l"]))
    other = run_graph({"model": call("LoadDemoModel"), "skip": skip}, keep={"clip": ("skip", 0)}).kept["clip"]
    contents.add(session.content_of(session.encoders_of(other)["clip_l"]))
    assert len(contents) == 4
    assert started == [0, 0]
    assert run_graph(pretraining(), keep=KEEP).status == "success"
    assert started == [0, 0, 2]


def test_captions_of_a_file_and_built_in_ones_are_mixed(run_graph, comfyui, small_vocabulary):
    path = comfyui.base / "input" / "captions.txt"
    path.write_text(
        "\n".join(f"a {colour} ball in the snow number {n}" for colour in ("red", "blue") for n in range(60))
    )
    run = run_graph(pretraining(file="captions.txt", steps=2), keep=KEEP)
    assert run.status == "success", run.error
    source = run.kept["psi"].provenance["captions"]
    assert (source["real"]["captions"], source["real_share"]) == (120, 0.7)
    alone = run_graph(pretraining(file="captions.txt", captions="none", steps=2), keep=KEEP)
    assert alone.kept["psi"].provenance["captions"]["captions"] == 120
    nothing = run_graph(pretraining(captions="none"), keep=KEEP)
    assert "no captions" in nothing.error["exception_message"]


def test_what_is_saved_can_be_loaded_and_belongs_to_its_text_encoder(run_graph, comfyui, small_vocabulary):
    save = {"contextualizer": ["psi", 0], "name": "mine", "if_taken": "add a number", "half_precision": False}
    graph = {**pretraining(), "save": call("SaveContextualizer", **save)}
    run = run_graph(graph, keep={**KEEP, "file": ("save", 0)})
    assert run.status == "success", run.error
    assert run.kept["file"] == "mine.safetensors"
    assert "mine.safetensors" in run.ui["save"]["text"][0]
    psi = weights(run.kept["psi"])
    comfyui.folder_paths.filename_list_cache.clear()
    load = {
        "model": call("LoadDemoModel"),
        "load": call("LoadContextualizer", file="mine.safetensors", clip=["model", 1]),
    }
    loaded = run_graph(load, keep={"psi": ("load", 0)})
    assert loaded.status == "success", loaded.error
    assert same(weights(loaded.kept["psi"]), psi)

    node = sys.modules[f"{pack_name()}.nodes.contextualizers"]
    other = node.encoders_of(run_graph({"m": call("LoadDemoModel")}, keep={"clip": ("m", 1)}).kept["clip"])["clip_l"]
    other.fingerprint = "ffffffffffffffff"
    with pytest.raises(ValueError, match="ffffffffffffffff") as refused:
        loaded.kept["psi"].encoder.require(other)
    assert loaded.kept["psi"].encoder.fingerprint in str(refused.value)
    hostile = run_graph({**graph, "save": call("SaveContextualizer", **save | {"name": "../x"})})
    assert hostile.status == "invalid"
    with pytest.raises(ValueError, match="may not begin"):
        node.SaveContextualizer.execute(loaded.kept["psi"], "../x", "replace", False)
    assert not (comfyui.base / "models" / "x.safetensors").exists()


@pytest.mark.parametrize("name", ["my contextualizer", "../mine", "con"])
def test_a_name_that_cannot_be_written_is_refused_before_the_graph_runs(run_graph, name):
    save = {"contextualizer": ["load", 0], "name": name, "if_taken": "add a number", "half_precision": True}
    nodes = {"load": call("LoadContextualizer", file=BUNDLED), "save": call("SaveContextualizer", **save)}
    refused = run_graph(nodes)
    assert (refused.status, refused.executed) == ("invalid", [])
    nodes["save"]["inputs"]["name"] = " mine "
    assert run_graph(nodes).status == "success"


def test_what_does_not_exist_is_not_loaded(run_graph):
    run = run_graph({"load": call("LoadContextualizer", file="../../etc/passwd")}, keep={"psi": ("load", 0)})
    assert run.status in ("invalid", "error")


def mlm(**changes: object) -> dict:
    return call("MLMRegularizer", contextualizer=["psi", 0], prompts=["p", 0], **MLM | changes)


def core(**changes: object) -> dict:
    given = {"weights": "custom", "embedding_weight": 0.05, "attention_weight": 0.5, "rescale_mode": "fixed_mean"}
    given |= {"embedding_axis": "paper", "attention_mode": "official", "attention_batch": 0}
    return call("CoReRegularizer", prompts=["p", 0], **given | changes)


class Encoder:
    def __init__(self, width):
        self.width = width


class Model:
    """As much of a model as choosing weights looks at."""

    def __init__(self, width):
        self.text_encoders = {"clip_l": Encoder(width)}
        self.schedule = SimpleNamespace(prediction_type="v_prediction")


KEPT = ("mlm", "both", "back", "strong", "paper", "p", "zero", "paper's")


def test_mlm_and_core_chain_both_ways(run_graph, small_vocabulary):
    graph = {**pretraining(), "p": prompts(own="a {} in a jar"), "mlm": mlm(), "core": core()}
    graph |= {"both": mlm(weights="auto (for this model)", regularizer=["core", 0])}
    graph |= {"back": core(regularizer=["mlm", 0]), "strong": mlm(weights="strong"), "paper": mlm(weights="paper")}
    graph |= {"zero": mlm(batch=0), "paper's": mlm(batch=25)}
    run = run_graph(graph, keep={name: (name, 0) for name in graph if name in KEPT})
    assert run.status == "success", run.error
    kept = run.kept
    (alone,) = kept["mlm"].make(Model(768))
    assert (alone.weight, alone.rho, alone.batch, alone.beside_class) == (0.2, 0.5, 4, False)
    assert kept["mlm"].norm_mode is None, "MLM says nothing about the vector's length"
    for chain in ("both", "back"):
        assert {one.name for one in kept[chain].make(Model(768))} == {"core", "mlm"}
        assert kept[chain].norm_mode == "fixed_mean"
    assert kept["both"].make(Model(768))[1].weight == kept["paper"].make(Model(128))[0].weight == 1e-4
    assert kept["both"].make(Model(768), "xti")[1].weight == 2.5e-4, "by what is trained"
    assert kept["strong"].make(Model(128))[0].weight == 5e-4
    assert kept["both"].make(Model(128))[1].weight > 1e-4
    batches = {name: [kept[name].make(Model(768), kind)[0].batch for kind in ("ti", "xti")] for name in KEPT[-2:]}
    assert batches == {"zero": [25, 12], "paper's": [25, 25]}, "a number counts as it stands"
    types = kept["p"].rich.state()["types"]
    assert types["own"] == 1
    assert len(types) == 7
    assert kept["back"].make(Model(768))[1].prompts[0] == "a {} in a jar"
    twice = run_graph({**graph, "twice": mlm(contextualizer_2=["psi", 0])}, keep={"twice": ("twice", 0)})
    assert "clip_l" in twice.error["exception_message"]


def training(regularizer: list | None, **changes: object) -> dict:
    numbers = {"steps": 5, "learning_rate": 0.02, "batch": 2, "vectors": 1, "seed": 3, "preview_every": 0}
    fixed = {"train": "textual inversion", "recipe": "auto (for this model)", "continue_interrupted": True}
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    sockets |= {} if regularizer is None else {"regularizer": regularizer}
    words = {"class_word": "house", "name": "keep", "preview_prompt": "a {}"}
    images = call("DemoImages", concept="castle", count=2, background="grass", seed=0)
    return {"images": images, "train": call("TrainConcept", **sockets, **words, **fixed | numbers | changes)}


def test_a_word_is_trained_with_mlm_and_a_weight_of_zero_changes_nothing(run_graph, small_vocabulary):
    graph = {**pretraining(), "p": prompts(), "mlm": mlm(), "none": mlm(weight=0.0)}
    keep = {"concept": ("train", 0), "loss": ("train", 1)}
    runs = [run_graph({**graph, **training(source)}, keep=keep) for source in (["mlm", 0], ["none", 0], None)]
    assert [run.status for run in runs] == ["success"] * 3, [run.error for run in runs]
    with_mlm, zero, plain = (run.kept["concept"].vectors["clip_l"] for run in runs)
    assert torch.equal(zero, plain)
    assert not torch.equal(with_mlm, plain)
    assert len(runs[0].kept["loss"]["mlm/clip_l"]) == 5
    assert all(value > 0 for value in runs[0].kept["loss"]["mlm/clip_l"])
    assert runs[0].kept["concept"].provenance["regularizers"][0]["name"] == "mlm"


def test_the_bundled_contextualizer_needs_no_file(run_graph, repository):
    if not (repository / "core/models/tiny/weights/contextualizer.safetensors").exists():
        pytest.fail("the contextualizer of the demo model is missing")
    graph = {"model": call("LoadDemoModel"), "psi": call("LoadContextualizer", file=BUNDLED, clip=["model", 1])}
    graph |= {"p": prompts(), "mlm": mlm(weights="auto (for this model)"), **training(["mlm", 0], steps=2)}
    run = run_graph(graph, keep={"psi": ("psi", 0), "concept": ("train", 0)})
    assert run.status == "success", run.error
    found = run.kept["psi"].provenance["held_out"]
    assert found["accuracy_interval"][0] > 1.5 * found["floor_most_frequent_interval"][1]
    assert found["accuracy_interval"][0] > 1.5 * found["floor_shuffled_context_interval"][1]


def test_text_of_another_node_becomes_prompts(run_graph):
    graph = {
        "images": call("DemoImages", concept="goblet", count=2, background="grass", seed=0, companion="yellow star")
    }
    graph["p"] = prompts("none", text=["images", 3])
    run = run_graph(graph, keep={"p": ("p", 0), "text": ("images", 3), "images": ("images", 0), "masks": ("images", 1)})
    assert run.status == "success", run.error
    assert run.kept["p"].prompts == tuple(run.kept["text"].splitlines())
    assert sum("a yellow star" in prompt for prompt in run.kept["p"].prompts) == 24
    inside = run.kept["images"][run.kept["masks"] == 0]
    yellow = (inside[:, 0] > 0.85) & (inside[:, 1] > 0.75) & (inside[:, 2] < 0.45)
    assert yellow.float().mean() > 0.01, "the star is on the picture and not under the mask"
    wrong = run_graph({"p": prompts("none", text=["t", 0]), "t": text("a {} here\n\nno place")}, keep={"p": ("p", 0)})
    assert "line 3" in wrong.error["exception_message"]
    # A language model numbers its lines; the numbers became words of the prompts.
    listed = text("1. a {} here\n\n- a {} there\n12) 3 of {}")
    assert run_graph({"p": prompts("none", text=["t", 0]), "t": listed}, keep={"p": ("p", 0)}).kept["p"].prompts == (
        "a {} here",
        "a {} there",
        "3 of {}",
    )
    refused = call("DemoImages", concept="horned-cat", count=1, background="grass", seed=0, companion="white cat")
    assert "both a cat" in run_graph({"i": refused}, keep={"i": ("i", 0)}).error["exception_message"]


def text(value: str) -> dict:
    return {"class_type": "PrimitiveStringMultiline", "inputs": {"value": value}}


def test_words_pull_in_a_chain_and_in_a_training(run_graph):
    """Random words push where no tuning-encoder is connected; the demo model's neighbours are words that it knows."""
    numbers = {"weight": 0.3, "norm_weight": 0.0, "neighbours": 7, "temperature": 0.1, "words": 9}
    graph = {"p": prompts(own="a {} in a jar"), "near": call("NearestWordRegularizer", **numbers)}
    graph |= {"core": core(regularizer=["near", 0]), "said": call("LoadTuningEncoder", file=BUNDLED)}
    graph |= {"banked": call("NearestWordRegularizer", tuning_encoder=["said", 0], regularizer=["core", 0], **numbers)}
    graph |= {"model": call("LoadDemoModel")}
    graph |= {"images": call("DemoImages", concept="castle", count=2, background="grass", seed=0)}
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    settings = {"train": "textual inversion", "recipe": "auto (for this model)", "continue_interrupted": False}
    settings |= {"class_word": "house", "name": "near", "steps": 3, "learning_rate": 0.02, "batch": 1, "vectors": 2}
    settings |= {"seed": 0, "preview_every": 0, "preview_prompt": "a photo of a {}", "regularizer": ["near", 0]}
    graph |= {"train": call("TrainConcept", **sockets, **settings)}
    run = run_graph(
        graph, keep={name: (name, 0) for name in ("near", "core", "banked", "said")} | {"loss": ("train", 1)}
    )
    assert run.status == "success", run.error
    (alone,) = run.kept["near"].make(Model(768))
    assert (alone.weight, alone.norm_weight, alone.neighbours, alone.tau, alone.words) == (0.3, 0, 7, 0.1, 9)
    assert not alone.known
    assert not alone.bank
    assert [one.name for one in run.kept["core"].make(Model(768))] == ["nearest", "core"]
    *_, last = run.kept["banked"].make(Model(768))
    assert torch.equal(last.bank["clip_l"], run.kept["said"].negatives["clip_l"])
    pull = run.kept["loss"]["nearest/contrastive"]
    assert len(pull) == 3
    assert all(value > 0 for value in pull)
