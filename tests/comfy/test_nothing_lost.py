"""What was learned is on the disk until it is saved, whatever fails or is killed on the way there."""

import errno
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from messages import LONGEST, own_length

PREFIX = "ContextualInversion"
STEPS = 3
TRAINING = {"class_word": "house", "name": "keep", "train": "textual inversion", "recipe": "auto (for this model)"}
NUMBERS = {"steps": STEPS, "learning_rate": 0.02, "batch": 1, "vectors": 1, "seed": 3, "continue_interrupted": True}
PREVIEW = {"preview_every": 0, "preview_prompt": "a photo of a {}"}
KEEP = {"concept": ("train", 0), "loss": ("train", 1)}
FULL = OSError(errno.ENOSPC, "No space left on device")


def call(name: str, /, **inputs: object) -> dict:
    return {"class_type": PREFIX + name, "inputs": inputs}


def graph(save: dict | None = None, **changes: object) -> dict:
    """A short training, and SaveConcept behind it where `save` has other inputs of it."""
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    nodes = {
        "model": call("LoadDemoModel"),
        "images": call("DemoImages", concept="castle", count=1, background="grass", seed=0),
        "train": call("TrainConcept", **sockets, **TRAINING | NUMBERS | PREVIEW | changes),
    }
    if save is not None:
        defaults = {"concept": ["train", 0], "name": "", "if_taken": "add a number", "embedding_file": True}
        nodes["save"] = call("SaveConcept", **defaults | {"half_precision": False} | save)
    return nodes


def texts(run: object, node: str = "train") -> list[str]:
    return [data["text"] for data in run.events("progress_text") if data["node"] == node]


def module(name: str) -> object:
    """A module of the pack as ComfyUI has imported it."""
    return next(value for key, value in sys.modules.items() if key.endswith(f".{name}") and "custom_nodes" in key)


def finished(comfyui: object) -> list:
    root = comfyui.base / "user" / "contextual_inversion" / "finished"
    return sorted(root.iterdir()) if root.exists() else []


def words(comfyui: object) -> dict[str, list[str]]:
    """The names in each folder that SaveConcept writes to."""
    kinds = ("contextual_inversion", "embeddings")
    return {kind: sorted(path.stem for path in (comfyui.base / "models" / kind).glob("*")) for kind in kinds}


def both(*names: str) -> dict[str, list[str]]:
    return {"contextual_inversion": [*names], "embeddings": [*names]}


def vectors(run: object) -> torch.Tensor:
    return run.kept["concept"].vectors["clip_l"]


@pytest.fixture(autouse=True)
def clean(comfyui):
    import folder_paths

    shutil.rmtree(comfyui.base / "user" / "contextual_inversion", ignore_errors=True)
    for kind in ("embeddings", "contextual_inversion"):
        for folder in folder_paths.get_folder_paths(kind):
            shutil.rmtree(folder, ignore_errors=True)
    folder_paths.filename_list_cache.clear()


def at_once(run: object) -> bool:
    """Whether a training was gone on with at its end."""
    steps = [data for data in run.events("contextual_inversion.training") if data.get("begins")]
    return [data["step"] for data in steps] == [STEPS]


def test_what_is_not_saved_is_there_after_a_restart_and_what_is_saved_is_not(run_after_restart, comfyui):
    first = run_after_restart(graph(), keep=KEEP)
    assert first.status == "success", first.error
    (folder,) = finished(comfyui)
    assert any(f"until saved it waits in user/contextual_inversion/finished/{folder.name}" in t for t in texts(first))
    again = run_after_restart(graph(), keep=KEEP)
    assert at_once(again)
    assert torch.equal(vectors(again), vectors(first))
    assert again.kept["loss"] == first.kept["loss"]
    saving = run_after_restart(graph({}), keep=KEEP)
    assert saving.status == "success", saving.error
    assert at_once(saving)
    assert torch.equal(vectors(saving), vectors(first))
    assert finished(comfyui) == []
    assert words(comfyui) == both("keep")


@pytest.mark.parametrize("changes", [{"seed": 4}, {"preview_every": 9}, {"continue_interrupted": False}])
def test_other_inputs_are_another_training_and_supersede_it(run_after_restart, comfyui, changes):
    run_after_restart(graph())
    first = run_after_restart(graph(), keep=KEEP)
    (before,) = finished(comfyui)
    other = run_after_restart(graph(**changes), keep=KEEP)
    assert not at_once(other)
    (after,) = finished(comfyui)
    assert torch.equal(vectors(other), vectors(first)) == ("seed" not in changes)
    assert (before == after) == ("continue_interrupted" in changes)


def test_of_other_pictures_nothing_is_superseded(run_after_restart, comfyui):
    run_after_restart(graph(), keep=KEEP)
    others = graph()
    others["images"]["inputs"]["concept"] = "goblet"
    run_after_restart(others, keep=KEEP)
    assert len(finished(comfyui)) == 2


def test_a_word_that_was_refined_and_saved_does_not_wait_any_more(run_graph, comfyui):
    nodes = graph(learning_rate=0.05)
    inputs = nodes["train"]["inputs"]
    refined = {key: inputs[key] for key in ("model", "clip", "vae", "images", *PREVIEW)}
    refined |= {"concept": ["train", 0], "train": "LoRA", "recipe": "auto (for this model)", "steps": 2, "batch": 1}
    refined |= {"learning_rate": 0.001, "rank": 1, "seed": 0, "continue_interrupted": True}
    nodes["refine"] = call("RefineConcept", **refined)
    both_kept = {"concept": ("train", 0), "refined": ("refine", 0)}
    run = run_graph(nodes, keep=both_kept)
    assert run.status == "success", run.error
    assert len(finished(comfyui)) == 2
    save = graph({"concept": ["refine", 0]})["save"]
    run = run_graph({**nodes, "save": save}, keep=both_kept)
    assert run.status == "success", run.error
    assert finished(comfyui) == []


CALLS = {
    "the first name": ("link", 1),
    "the second name": ("link", 2),
    "the first file": ("fsync", 1),
    "the second file": ("fsync", 2),
    "the plan of both": ("fsync", 3),
    "the folder": ("fsync", 5),
}


def only_while_saving(monkeypatch, call: str, number: int, act: object) -> None:
    """`act` in place of the `number`-th call of a function of `os` after SaveConcept has begun."""
    concepts, counted, real = module("nodes.concepts"), [-1], getattr(os, call)
    name = concepts.free_name

    def begin(*given: object) -> str:
        counted[0] = 0
        return name(*given)

    def counting(*given: object, **options: object) -> object:
        counted[0] += counted[0] >= 0
        return act() if counted[0] == number else real(*given, **options)

    monkeypatch.setattr(concepts, "free_name", begin)
    monkeypatch.setattr(os, call, counting)


def fail() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", CALLS)
def test_a_full_disk_while_saving_loses_nothing(run_after_restart, comfyui, monkeypatch, place):
    with monkeypatch.context() as patch:
        only_while_saving(patch, *CALLS[place], fail)
        failed = run_after_restart(graph({}), keep=KEEP)
    assert failed.status == "error"
    message = failed.error["exception_message"]
    (folder,) = finished(comfyui)
    assert "No space left on device; free some space" in message
    assert "keep.safetensors" in message
    assert folder.name in message
    assert own_length(message) < LONGEST
    assert words(comfyui) in (both(), both("keep"))
    again = run_after_restart(graph({}), keep=KEEP)
    assert again.status == "success", again.error
    assert at_once(again)
    assert words(comfyui) in (both("keep"), both("keep", "keep_2"))
    assert finished(comfyui) == []


@pytest.mark.parametrize("place", CALLS)
def test_a_kill_while_saving_loses_nothing(run_after_restart, comfyui, monkeypatch, place):
    process = os.fork()
    if process == 0:
        only_while_saving(monkeypatch, *CALLS[place], lambda: os.kill(os.getpid(), signal.SIGKILL))
        run_after_restart(graph({}))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(finished(comfyui)) == 1
    again = run_after_restart(graph({}), keep=KEEP)
    assert again.status == "success", again.error
    assert at_once(again)
    saved_names = words(comfyui)
    assert saved_names["contextual_inversion"] == saved_names["embeddings"], "both or neither"
    assert "keep" in saved_names["embeddings"]
    assert finished(comfyui) == []
    left = list((comfyui.base / "models").rglob(".writing-*"))
    assert left == []


@pytest.mark.parametrize("place", ["the last checkpoint", "its end", "the move"])
def test_a_kill_at_the_end_of_a_training_costs_no_step_that_was_kept(
    run_after_restart, comfyui, forget_finished, monkeypatch, place
):
    whole = run_after_restart(graph(), keep=KEEP)
    forget_finished()
    process = os.fork()
    if process == 0:
        number = {"the last checkpoint": 1, "its end": 2, "the move": 3}[place]
        calls, real = [0], os.replace

        def replace(*given: object) -> None:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*given)

        monkeypatch.setattr(os, "replace", replace)
        run_after_restart(graph(), keep=KEEP)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    again = run_after_restart(graph(), keep=KEEP)
    assert again.status == "success", again.error
    assert at_once(again) == (place != "the last checkpoint")
    assert torch.equal(vectors(again), vectors(whole))
    assert len(finished(comfyui)) == 1


def test_what_was_stopped_and_kept_is_that_again_after_a_restart(run_after_restart, comfyui, monkeypatch):
    running = module("nodes.page.running")
    monkeypatch.setattr(module("nodes.page.live_view"), "PAUSE", 0.0)  # so that every step is heard of

    def stop(event: str, data: dict) -> None:
        if event == "contextual_inversion.training" and data["step"] == 1 and not data["ended"]:
            running._running["train"].stop = True

    run = run_after_restart(graph(steps=5), keep=KEEP, on_event=stop)
    assert run.status == "success", run.error
    assert run.kept["concept"].provenance["steps"] < 5
    again = run_after_restart(graph(steps=5), keep=KEEP)
    assert again.status == "success", again.error
    assert torch.equal(vectors(again), vectors(run))
    assert again.kept["loss"] == run.kept["loss"]
    assert any("stopped at step" in text for text in texts(again))


def test_damaged_finished_work_is_learned_again(run_after_restart, comfyui):
    first = run_after_restart(graph(), keep=KEEP)
    (folder,) = finished(comfyui)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    again = run_after_restart(graph(), keep=KEEP)
    assert again.status == "success", again.error
    assert not at_once(again)
    assert torch.equal(vectors(again), vectors(first))


def test_a_place_for_checkpoints_that_takes_none_is_refused_before_the_first_step(run_after_restart, comfyui):
    root = comfyui.base / "user" / "contextual_inversion"
    root.mkdir()
    (root / "checkpoints").touch()
    run = run_after_restart(graph(), keep=KEEP)
    assert run.status == "error"
    assert "a file stands where a folder is needed" in run.error["exception_message"]
    assert {data["step"] for data in run.events("contextual_inversion.training")} == {0}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_while_it_trains_ends_nothing_and_is_said(
    run_after_restart, comfyui, forget_finished, monkeypatch, number
):
    whole = run_after_restart(graph(), keep=KEEP)
    forget_finished()
    written = module("core.training.run.checkpoint")

    def full(*given: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "step_000003.safetensors")

    monkeypatch.setattr(written, "atomic_write_verified", full)
    run = run_after_restart(graph(), keep=KEEP)
    assert run.status == "success", run.error
    assert torch.equal(vectors(run), vectors(whole))
    assert os.strerror(number) in texts(run)[-1]
    assert "in memory alone: save it now" in texts(run)[-1]
    assert finished(comfyui) == []


def test_a_preview_that_cannot_be_written_ends_nothing(run_after_restart, comfyui, monkeypatch):
    from PIL import Image

    def full(*given: object, **options: object) -> None:
        raise FULL

    monkeypatch.setattr(Image.Image, "save", full)
    run = run_after_restart(graph(preview_every=2), keep=KEEP)
    assert run.status == "success", run.error
    assert any("no preview of step 2" in text and "No space left" in text for text in texts(run))
    assert any("learned <keep>" in text for text in texts(run))


def test_a_page_that_is_gone_ends_nothing(run_after_restart, comfyui, monkeypatch):
    send = comfyui.server.send_sync

    def gone(event: str, data: object, sid: str | None = None) -> None:
        if event == "contextual_inversion.training":
            raise ConnectionResetError("gone")
        send(event, data, sid)

    monkeypatch.setattr(comfyui.server, "send_sync", gone)
    run = run_after_restart(graph(), keep=KEEP)
    assert run.status == "success", run.error


BAD = ("../up", "a\\b", "x.safetensors", "/abs", "a//b", "a/", ".hidden", "CON", "a b", "x" * 300)
WRITERS = {
    "SaveConcept": {"concept": ["train", 0], "if_taken": "replace", "embedding_file": True, "half_precision": False},
    "SaveContextualizer": {"contextualizer": ["psi", 0], "if_taken": "add a number", "half_precision": False},
}


@pytest.mark.parametrize("node", [*WRITERS, "PretrainTuningEncoder", "TrainConcept", "PredictConcept"])
def test_a_name_that_no_file_can_have_is_refused_before_anything_runs(run_after_restart, comfyui, node):
    """Asked of the node's own check, and of ComfyUI for those whose other inputs are few."""
    kind = comfyui.nodes.NODE_CLASS_MAPPINGS[PREFIX + node]
    for name in BAD:
        said = kind.validate_inputs(name=name)
        assert isinstance(said, str), name
        assert 20 < len(said) < 400
        assert "is empty" not in said
    assert kind.validate_inputs(name="fine") is True
    assert kind.validate_inputs() is True, "a link says it later"
    if node in WRITERS:
        prompt = graph()
        prompt |= {"psi": call("LoadContextualizer", file="bundled: demo model")}
        prompt |= {"write": call(node, **WRITERS[node], name="../up")}
        assert run_after_restart(prompt).status == "invalid"
        prompt["write"]["inputs"] |= {"name": "fine", "if_taken": "perhaps"}
        assert run_after_restart(prompt).status == "invalid", "a choice that is none"


def test_what_is_taken_is_refused_before_the_training_where_that_is_chosen(run_after_restart, comfyui):
    folder = comfyui.base / "models" / "embeddings"
    folder.mkdir(parents=True)
    (folder / "keep.safetensors").touch()
    refuse = {"name": "keep", "if_taken": "refuse"}
    run = run_after_restart(graph(refuse))
    assert run.status == "invalid"
    assert "exists" in json.dumps(run.error)
    assert run_after_restart(graph({**refuse, "embedding_file": False})).status == "success"


def test_a_folder_that_takes_no_file_is_refused_before_the_training(run_after_restart, comfyui):
    (comfyui.base / "models" / "contextual_inversion").touch()
    run = run_after_restart(graph({"name": "keep"}))
    (comfyui.base / "models" / "contextual_inversion").unlink()
    assert run.status == "invalid"
    assert "a file stands where a folder is needed" in json.dumps(run.error)


def test_a_word_that_changes_what_old_prompts_mean_is_said(run_graph, comfyui):
    folder = comfyui.base / "models" / "embeddings"
    (folder / "shelf").mkdir(parents=True)
    (folder / "keep.pt").touch()
    (folder / "shelf" / "keep.bin").touch()
    run = run_graph(graph({}))
    assert run.status == "success", run.error
    lines = run.ui["save"]["text"][0].splitlines()
    assert "embedding:keep meant keep.pt until now; from now on it means the new file." in lines
    assert any("may also mean" in line and "shelf/keep.bin" in line for line in lines)
    assert not any("meant" in line for line in run_graph(graph({"name": "other"})).ui["save"]["text"][0].splitlines())


def test_a_repair_that_was_cancelled_or_not_saved_goes_on(run_after_restart, comfyui, forget_finished, monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(module("nodes.page.live_view"), "PAUSE", 0.0)
    inputs = {"prompt": "a {} in the snow", "steps": 3, "learning_rate": 0.01, "batch": 1, "latents": "pure noise"}
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "concept": ["word", 0]}
    nodes = graph({})
    run_after_restart(nodes)
    nodes = {
        "model": nodes["model"],
        "word": call("LoadConcept", file="embeddings/keep.safetensors", class_word="house"),
    }
    nodes["train"] = call("OptimizeForPrompt", **sockets, **inputs, seed=0, width=64, height=64)
    whole = run_after_restart(nodes, keep={"concept": ("train", 0)})
    assert whole.status == "success", whole.error
    assert len(finished(comfyui)) == 1
    again = run_after_restart(nodes, keep={"concept": ("train", 0)})
    assert at_once(again)
    assert torch.equal(vectors(again), vectors(whole))
    forget_finished()

    def cancel(event: str, data: dict) -> None:
        if event == "contextual_inversion.training" and data["step"] == 2 and not data["ended"]:
            comfy.model_management.interrupt_current_processing()

    assert run_after_restart(nodes, on_event=cancel, keep={"concept": ("train", 0)}).status == "interrupted"
    resumed = run_after_restart(nodes, keep={"concept": ("train", 0)})
    assert [data["step"] for data in resumed.events("contextual_inversion.training") if data.get("begins")] == [2]
    assert torch.equal(vectors(resumed), vectors(whole))
    run_after_restart({**nodes, "save": graph({"name": "mended"})["save"]})
    assert finished(comfyui) == []
    assert words(comfyui) == both("keep", "mended")


def test_a_contextualizer_waits_until_it_is_saved(run_after_restart, comfyui, monkeypatch):
    recipes = next(value for key, value in sys.modules.items() if key.endswith(".training.contextualizer.recipes"))
    monkeypatch.setitem(recipes.NARROW, "vocabulary_captions", 200)
    chosen = {"text_encoder": "auto (for this model)", "captions": "concept_world", "file": "none", "real_share": 0.7}
    numbers = {"steps": STEPS, "batch": 2, "learning_rate": 0.0, "mask_rate": 0.3, "held_out": 10, "seed": 0}
    others = {"size": "auto (for this model)", "loss_mode": "masked", "continue_interrupted": True}
    nodes = {"model": call("LoadDemoModel")}
    nodes["train"] = call("PretrainContextualizer", clip=["model", 1], **chosen, **numbers, **others)
    kept = {"psi": ("train", 0), "report": ("train", 2)}
    first = run_after_restart(nodes, keep=kept)
    assert first.status == "success", first.error
    assert len(finished(comfyui)) == 1
    nodes["save"] = call("SaveContextualizer", contextualizer=["train", 0], name="psi", if_taken="replace")
    nodes["save"]["inputs"] |= {"half_precision": False}
    again = run_after_restart(nodes, keep=kept)
    assert again.status == "success", again.error
    assert at_once(again)
    ours, theirs = (run.kept["psi"].state_dict() for run in (first, again))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert again.kept["report"] == first.kept["report"]
    assert finished(comfyui) == []
