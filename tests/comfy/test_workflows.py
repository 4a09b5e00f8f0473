"""The shipped graphs run from their files: inside the tests' ComfyUI, and in a real server as a page queues them."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

FOLDER = "contextual-inversion"
PREFIX = "ContextualInversion"
SHORT = {
    f"{PREFIX}TrainConcept": {"steps": 3, "batch": 2, "preview_every": 3},
    "KSampler": {"steps": 2},
}
REFINED = {f"{PREFIX}RefineConcept": {"steps": 3, "batch": 2, "preview_every": 3}}
DIAGNOSED = {f"{PREFIX}DiagnoseConcept": {"steps": 2, "most_prompts": 1}}
PRETRAINED = {f"{PREFIX}PretrainContextualizer": {"steps": 2, "batch": 4, "held_out": 10}}
PRETRAINING = "pretrain_a_contextualizer"
WITH_MLM = {"Training pictures": 4, "With MLM": 3, "Plain textual inversion": 3, "Loss of the MLM training": 1}
# A picture a word of the prompt.
SEEN = {"Heat maps": 9, "Found in the picture": 8, "Heat maps of the new word": 11, "What it does to its neighbours": 1}
METHODS = ("textual inversion", "XTI", "Custom Diffusion", "DreamBooth, LoRA")
# file: (what makes it short, how many pictures each of its output nodes shows)
MORE_FILES = {
    "train_a_word_with_mlm": (SHORT, WITH_MLM),
    "second_stage": (SHORT | REFINED, {"The word alone": 3, "After the second stage": 3}),
    "dual_path": (SHORT | REFINED, {"The soft path alone": 3, "Both paths": 3}),
    "repair_a_prompt": (SHORT, {"Before and after, same seed": 2, "Before": 1, "After": 1}),
    "see_what_a_word_does": (SHORT | DIAGNOSED, SEEN),
    "compare_methods": (SHORT, dict.fromkeys(METHODS, 3)),
}
FILES = ("train_a_word",)


@pytest.fixture
def workflow(repository, name):
    return repository / "workflows" / f"{name}.json"


@pytest.mark.parametrize("name", FILES)
def test_a_workflow_runs_from_its_file(run_ui_workflow, workflow):
    run = run_ui_workflow(workflow, SHORT)
    assert run.status == "success", run.error
    titles = {str(node["id"]): node.get("title", node["type"]) for node in json.loads(workflow.read_text())["nodes"]}
    pictures = {titles[node]: len(ui["images"]) for node, ui in run.ui.items() if "images" in ui}
    assert pictures["Training pictures"] == 4
    assert pictures["With CoRe"] == pictures["Plain textual inversion"] == 3
    assert any("embedding:" in text for ui in run.ui.values() for text in ui.get("text", ()))
    assert run_ui_workflow(workflow, SHORT).executed == []


@pytest.mark.parametrize("name", MORE_FILES)
def test_a_workflow_of_methods_runs_from_its_file(run_ui_workflow, workflow, name):
    short, shown = MORE_FILES[name]
    run = run_ui_workflow(workflow, short)
    assert run.status == "success", run.error
    titles = {str(node["id"]): node.get("title", node["type"]) for node in json.loads(workflow.read_text())["nodes"]}
    pictures = {titles[node]: len(ui["images"]) for node, ui in run.ui.items() if "images" in ui}
    assert pictures["Training pictures"] == 4
    assert {title: pictures.get(title) for title in shown} == shown
    assert run_ui_workflow(workflow, short).executed == []


@pytest.mark.parametrize("name", [PRETRAINING])
def test_the_pretraining_runs_from_its_file(run_ui_workflow, workflow):
    run = run_ui_workflow(workflow, PRETRAINED)
    assert run.status == "success", run.error
    lines = [str(text) for ui in run.ui.values() for text in ui.get("text", ())]
    assert any("Saved" in line and "demo-model" in line for line in lines)
    assert any("context shuffled" in line for line in lines)
    assert sum("images" in ui for ui in run.ui.values()) == 1


@pytest.mark.parametrize("name", [*FILES, *MORE_FILES, PRETRAINING, "one_picture_one_word"])
def test_a_workflow_is_tidy(workflow):
    """No node lies on another, every node lies in a group, and every link joins sockets that exist."""
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    boxes = {key: (*node["pos"], *node["size"]) for key, node in nodes.items()}
    for one in boxes:
        for other in boxes:
            assert one >= other or apart(boxes[one], boxes[other]), f"{one} and {other} overlap"
    groups = [group["bounding"] for group in graph["groups"]]
    assert all(any(within(box, group) for group in groups) for box in boxes.values())
    for link, source, output, target, slot, kind in graph["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["type"] in (kind, "*")


def apart(one: tuple, other: tuple) -> bool:
    # A title bar is 30 pixels above its node.
    (x, y, w, h), (u, v, p, q) = one, other
    return x + w <= u or u + p <= x or y + h <= v - 30 or v + q <= y - 30


def within(box: tuple, group: list) -> bool:
    (x, y, w, h), (u, v, p, q) = box, group
    return u <= x and v <= y - 30 and x + w <= u + p and y + h <= v + q


@contextlib.contextmanager
def running_server(comfyui_path, repository, base):
    """A ComfyUI process of its own with the pack linked into custom_nodes; yields its address."""
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/embeddings"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / FOLDER).symlink_to(repository, target_is_directory=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)]
    command += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    if front_end := os.environ.get("COMFYUI_FRONT_END"):  # the files of another one than is pinned
        command += ["--front-end-root", front_end]
    log = base / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=comfyui_path, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: get(f"127.0.0.1:{port}", "/system_stats"), process, log)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait_for(ask, process, log, seconds: float = 600.0):
    """The first true answer; fails with the end of the log if the process ends or nothing comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if answer := ask():
                return answer
        time.sleep(0.5)
    return pytest.fail(log.read_text(errors="replace")[-4000:])


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=60) as response:
        return response.read()


def post(address: str, path: str, content: object) -> dict:
    data = json.dumps(content).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_a_real_server_shows_and_runs_everything(comfyui_path, repository, tmp_path):
    converter = pytest.importorskip("comfy_cli.workflow_to_api", reason="comfy-cli converts UI workflows")
    websocket = pytest.importorskip("websocket", reason="comfy-cli brings a websocket client")
    with running_server(comfyui_path, repository, tmp_path / "base") as address:
        info = json.loads(get(address, "/object_info"))
        ours = {name for name in info if name.startswith(PREFIX)}
        assert len(ours) >= 8
        for name in ours:
            assert info[name]["python_module"] == f"custom_nodes.{FOLDER}"
            assert get(address, f"/extensions/{FOLDER}/docs/{name}.md").startswith(b"# ")
        assert "train_a_word" in json.loads(get(address, "/workflow_templates"))[FOLDER]
        served = json.loads(get(address, f"/api/workflow_templates/{FOLDER}/train_a_word.json"))

        prompt = converter.convert_ui_to_api(served, info)
        for node in prompt.values():
            node["inputs"].update(SHORT.get(node["class_type"], {}))
        page = websocket.create_connection(f"ws://{address}/ws?clientId=test", timeout=600)
        page.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        extra = {"extra_pnginfo": {"workflow": served}}
        number = post(address, "/prompt", {"prompt": prompt, "client_id": "test", "extra_data": extra})["prompt_id"]
        events, lines = listen(page, number)
        page.close()

        entry = json.loads(get(address, f"/history/{number}"))[number]
        assert entry["status"]["status_str"] == "success", entry["status"]
        images = [image for output in entry["outputs"].values() for image in output.get("images", ())]
        assert sum(image["type"] == "output" for image in images) == 6
        training = {name for name, node in prompt.items() if node["class_type"] == f"{PREFIX}TrainConcept"}
        progress = [data["nodes"] for kind, data in events if kind == "progress_state"]
        assert training <= {name for nodes in progress for name, node in nodes.items() if node["max"] == 3}
        views = [data for kind, data in events if kind == "contextual_inversion.training"]
        assert training <= {view["node_id"] for view in views if view["samples"]}
        assert training <= {view["node_id"] for view in views if view["steps"][-1:] == [3]}
        assert {view["workflow"] for view in views} == {served["id"]}
        assert any("learned <my-word>" in line for line in lines)


def listen(page, number: str) -> tuple[list, list]:
    """Everything until the prompt is done: JSON events, and lines of text on nodes."""
    events, lines = [], []
    while True:
        message = page.recv()
        if isinstance(message, bytes):
            kind, length = struct.unpack(">II", message[:8])
            if kind == 3:
                lines.append(message[8 + length :].decode())
            continue
        event = json.loads(message)
        events.append((event["type"], event["data"]))
        # Sent once the prompt is in the history; "execution_success" comes before that.
        if event["type"] == "executing" and event["data"] == {"node": None, "prompt_id": number}:
            return events, lines
