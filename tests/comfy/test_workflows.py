"""The shipped graphs run from their files: inside the tests' ComfyUI, and in a real server as a page queues them."""

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = "contextual-inversion"
PREFIX = "ContextualInversion"
FILES = {
    json.loads(file.read_text(encoding="utf-8"))["extra"]["contextual_inversion_graph"]: file
    for file in sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
}
"""Every shipped graph, by what it calls itself."""
SHORT = {
    f"{PREFIX}TrainConcept": {"steps": 3, "batch": 2, "preview_every": 3},
    f"{PREFIX}RefineConcept": {"steps": 3, "batch": 2, "preview_every": 3},
    f"{PREFIX}DiagnoseConcept": {"steps": 2, "most_prompts": 1},
    f"{PREFIX}PretrainContextualizer": {"steps": 2, "batch": 4, "held_out": 10},
    f"{PREFIX}TunePredictedConcept": {"steps": 2},
    "KSampler": {"steps": 2},
}
"""What makes a graph short, where it has such a node."""
SHEETS = {
    "first_word": (2, 3),
    "train_a_word": (2, 3),
    "train_my_photos": (1, 3),
    "train_a_word_with_mlm": (2, 3),
    "one_picture_one_word": (2, 3),
    "second_stage": (2, 3),
    "repair_a_prompt": (2, 1),
    "compare_methods": (4, 3),
    "dual_path": (2, 3),
    "beyond_stable_diffusion": (2, 3),
}
"""Rows and columns of the sheet in which a graph ends."""
WITHOUT = {"see_what_a_word_does": "its viewers are what it shows", "pretrain_a_contextualizer": "it draws nothing"}
SHOWN = {
    "train_a_word_with_mlm": {"Loss of the MLM training": 1},
    "repair_a_prompt": {"Before and after, same seed": 2},
    # A picture a word of the prompt.
    "see_what_a_word_does": {"Heat maps": 9, "Found in the picture": 8, "Heat maps of the new word": 11},
}
"""What else graphs show, and in how many pictures."""
SAID = {
    "first_word": "embedding:",
    "train_a_word": "embedding:",
    "train_my_photos": "embedding:",
    "beyond_stable_diffusion": "embedding:",
    "pretrain_a_contextualizer": "context shuffled",
}
"""What a graph says on one of its nodes."""
PHOTOS = "train_my_photos"
MOST_NODES, MOST_WIDE, MOST_HIGH = 10, 2000, 1200
THEIR_LINK = re.compile(r"[a-zA-Z0-9_.-]+")
"""What ComfyUI's page takes as ?template=NAME."""


@pytest.fixture
def workflow(name):
    return FILES[name]


def graph_of(name: str) -> dict:
    return json.loads(FILES[name].read_text(encoding="utf-8"))


def all_nodes(graph: dict) -> list[dict]:
    """Those of the graph and of its subgraphs."""
    inner = graph.get("definitions", {}).get("subgraphs", [])
    return [node for one in (graph, *inner) for node in one["nodes"]]


def short_for(graph: dict) -> dict[str, dict]:
    """As much of `SHORT` as the graph has nodes for."""
    there = {node["type"] for node in all_nodes(graph)}
    return {kind: dict(values) for kind, values in SHORT.items() if kind in there}


def test_every_graph_is_known_here():
    assert set(FILES) == SHEETS.keys() | WITHOUT.keys()


@pytest.fixture
def with_photos(comfyui):
    """What a person fills into the graph for one's own, with four photos of unlike sizes; and a model that is there."""
    generator = np.random.default_rng(0)
    for number, size in enumerate([(300, 400), (400, 300), (350, 350), (200, 500)]):
        pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(comfyui.base / "input" / f"photo{number}.png")
    filled = {str(11 + number): {"image": f"photo{number}.png"} for number in range(4)}
    filled["EmptyLatentImage"] = {"width": 128, "height": 128}
    return filled, {"CheckpointLoaderSimple": f"{PREFIX}LoadDemoModel"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_workflow_runs_from_its_file(run_ui_workflow, workflow, with_photos, name):
    graph = graph_of(name)
    short, instead = short_for(graph), {}
    if name == PHOTOS:
        filled, instead = with_photos
        short[f"{PREFIX}TrainConcept"]["class_word"] = "cup"
        short |= filled
    run = run_ui_workflow(workflow, short, instead)
    assert run.status == "success", run.error
    titles = {str(node["id"]): node.get("title", node["type"]) for node in graph["nodes"]}
    pictures = {titles.get(node): len(ui["images"]) for node, ui in run.ui.items() if "images" in ui}
    if "Training pictures" in titles.values():
        assert pictures["Training pictures"] == 4
    assert SHOWN.get(name, {}).items() <= pictures.items()
    assert SAID.get(name, "") in " ".join(str(text) for ui in run.ui.values() for text in ui.get("text", ()))
    if name in SHEETS:
        assert pictures["The result"] == 1
    assert run_ui_workflow(workflow, short, instead).executed == []


@pytest.mark.parametrize("name", sorted(SHEETS))
def test_a_workflow_ends_in_a_sheet_of_its_methods_and_prompts(name):
    graph = graph_of(name)
    (sheet,) = (node for node in graph["nodes"] if node["type"] == f"{PREFIX}ResultSheet")
    rows, columns = SHEETS[name]
    joined = {one["name"] for one in sheet["inputs"] if one.get("link") is not None}
    assert joined == {"images", "prompts", *(f"images_{row}" for row in range(2, rows + 1))}
    labels = [label for label in sheet["widgets_values"][0].split("|") if label.strip()]
    assert len(labels) == (rows if rows > 1 else 0)
    asked = [node for node in all_nodes(graph) if re.fullmatch(r"Prompt \d", node.get("title", ""))]
    assert len(asked) == (columns if columns > 1 else 0)


def test_the_starter_is_small_enough_to_be_read():
    nodes = graph_of("first_word")["nodes"]
    assert len(nodes) <= MOST_NODES
    right, bottom = (max(node["pos"][k] + node["size"][k] for node in nodes) for k in (0, 1))
    left, top = (min(node["pos"][k] for node in nodes) for k in (0, 1))
    assert right - left <= MOST_WIDE
    assert bottom - top <= MOST_HIGH
    assert not {"KSampler", "CLIPTextEncode", "VAEDecode", "EmptyLatentImage"} & {node["type"] for node in nodes}


def test_own_photos_need_no_link():
    """What a person replaces is chosen and written in its nodes, and lies in one group."""
    graph = graph_of(PHOTOS)
    (group,) = (one["bounding"] for one in graph["groups"] if "Replace this" in one["title"])
    checkpoint, photo, training = "CheckpointLoaderSimple", "LoadImage", f"{PREFIX}TrainConcept"
    kinds = {checkpoint, photo, training, f"{PREFIX}ContextPrompts"}
    nodes = {node["id"]: node for node in graph["nodes"]}
    own = [node for node in nodes.values() if node["type"] in kinds]
    assert {node["type"] for node in own} == kinds
    assert all(within((*node["pos"], *node["size"]), group) for node in own)

    sources = {link[0]: nodes[link[1]] for link in graph["links"]}
    (learning,) = (node for node in own if node["type"] == training)
    joined = {one["name"]: sources[one["link"]] for one in learning["inputs"] if one.get("link") is not None}
    assert "class_word" not in joined
    assert joined["model"]["type"] == joined["clip"]["type"] == joined["vae"]["type"] == checkpoint
    listed = [sources[one["link"]] for one in joined["images"]["inputs"] if one["link"] is not None]
    assert [node["type"] for node in listed] == [photo] * 4
    notes = " ".join(node["widgets_values"][0] for node in nodes.values() if node["type"] == "MarkdownNote")
    assert "ComfyUI/models/checkpoints" in notes
    assert re.search(r"\d+ minutes", notes)
    assert re.search(r"\d+ GB", notes)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_workflow_is_tidy(name):
    """No node lies on another, every node lies in a group, and every link joins sockets that exist."""
    graph = graph_of(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    boxes = {key: (*node["pos"], *node["size"]) for key, node in nodes.items()}
    for one in boxes:
        for other in boxes:
            assert one >= other or apart(boxes[one], boxes[other]), f"{one} and {other} overlap"
    groups = [group["bounding"] for group in graph["groups"]]
    assert [key for key, box in boxes.items() if not any(within(box, group) for group in groups)] == []
    for link, source, output, target, slot, kind in graph["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["type"] in (kind, "*")


def test_every_workflow_has_a_name_to_link_it_by_and_a_square_picture():
    for name, file in FILES.items():
        assert THEIR_LINK.fullmatch(name), "ComfyUI's page opens no link with another sign in it"
        assert re.fullmatch(r"\d+ [A-Z][\w ]+", file.stem)
        with Image.open(file.with_suffix(".jpg")) as picture:
            assert picture.width == picture.height >= 400, file.stem
            edges = np.asarray(picture.convert("L"))[[0, -1]]
            assert (edges > 250).mean() < 0.5, f"{file.stem}: a white margin"
    numbers = sorted(int(file.stem.split()[0]) for file in FILES.values())
    assert numbers == list(range(1, len(numbers) + 1))


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
        asked = "/contextual_inversion/training?client=test"
        assert json.loads(get(address, asked)) == {}, "a page with a training asks before the server's first prompt"
        info = json.loads(get(address, "/object_info"))
        ours = {name for name in info if name.startswith(PREFIX)}
        assert len(ours) >= 8
        for name in ours:
            assert info[name]["python_module"] == f"custom_nodes.{FOLDER}"
            assert get(address, f"/extensions/{FOLDER}/docs/{name}.md").startswith(b"# ")
        assert set(json.loads(get(address, "/workflow_templates"))[FOLDER]) == {file.stem for file in FILES.values()}
        for name, file in FILES.items():
            for linked in (name, file.stem):
                path = f"/api/workflow_templates/{FOLDER}/{urllib.parse.quote(linked)}.json"
                assert get(address, path) == file.read_bytes()
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
        assert sum(image["type"] == "output" for image in images) == 1, "the sheet"
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
