"""What the page is told of a training, and Stop and keep: through the routes that the page uses."""

import asyncio
import json
import sys
import threading

import pytest
import torch

PREFIX = "ContextualInversion"
EVENT = "contextual_inversion.training"
OUTPUT = "contextual_inversion_training"
STEPS = 6
KEEP = {"concept": ("train", 0), "loss": ("train", 1), "text": ("text", 0)}
TRAINING = {"class_word": "house", "name": "kept", "train": "textual inversion", "recipe": "auto (for this model)"}
NUMBERS = {"steps": STEPS, "learning_rate": 0.02, "batch": 2, "vectors": 2, "seed": 3, "continue_interrupted": True}
PREVIEW = {"preview_every": 0, "preview_prompt": "a photo of a {}"}


def call(name: str, /, **inputs: object) -> dict:
    return {"class_type": PREFIX + name, "inputs": inputs}


def graph(**changes: object) -> dict:
    """A short training, and what comes behind it: the word applied and a prompt with it encoded."""
    sockets = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "images": ["images", 0]}
    applied = {"model": ["model", 0], "clip": ["model", 1], "concept": ["train", 0]}
    return {
        "model": call("LoadDemoModel"),
        "images": call("DemoImages", concept="castle", count=2, background="grass", seed=0),
        "train": call("TrainConcept", **sockets, **TRAINING | NUMBERS | PREVIEW | changes),
        "apply": call("ApplyConcept", **applied, strength_model=1.0, strength_clip=1.0, name=""),
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["apply", 1], "text": "a <kept> in the snow"}},
    }


def module(name: str) -> object:
    """A module of the pack as ComfyUI has imported it."""
    ending = f".nodes.{name}"
    return next(value for key, value in sys.modules.items() if key.endswith(ending) and "custom_nodes" in key)


def trainer() -> object:
    return next(
        value for key, value in sys.modules.items() if key.endswith(".core.training.trainer") and "custom_nodes" in key
    )


@pytest.fixture
def ask(comfyui):
    """ask(method, path, **options): status and JSON of one request to the pack's routes, served as ComfyUI does."""
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    async def request(method: str, path: str, options: dict) -> tuple[int, object]:
        application = web.Application()
        ours = [route for route in comfyui.server.routes if route.path.startswith("/contextual_inversion")]
        application.add_routes(ours)
        async with TestClient(TestServer(application)) as client:
            answer = await client.request(method, f"/contextual_inversion{path}", **options)
            return answer.status, await answer.json()

    def from_elsewhere(method: str, path: str, **options: object) -> tuple[int, object]:
        # In a thread of its own: a training that is being asked about has an event loop around it.
        answers: list = []
        thread = threading.Thread(target=lambda: answers.append(asyncio.run(request(method, path, options))))
        thread.start()
        thread.join()
        return answers[0]

    return from_elsewhere


@pytest.fixture
def every_step(comfyui, monkeypatch):
    """News of every step, however fast they are."""
    monkeypatch.setattr(module("page.live_view"), "PAUSE", 0.0)


def press_at(step: int, ask: object, answers: list) -> object:
    """Presses Stop and keep as soon as the page hears of that step."""

    def on_event(event: str, data: dict) -> None:
        if event == EVENT and data["step"] == step and not answers:
            answers.append(ask("POST", "/stop", json={"node_id": "train"}))

    return on_event


@pytest.mark.parametrize("step", [1, 4])
def test_stop_and_keep_gives_the_concept_of_that_step(run_graph, comfyui, ask, every_step, monkeypatch, step):
    learned = {}
    report = trainer().TrainingRun._report

    def remember(run: object) -> object:
        learned[run.learner.done] = run.concept.vectors["clip_l"].clone()
        return report(run)

    monkeypatch.setattr(trainer().TrainingRun, "_report", remember)
    whole = run_graph(graph(), keep=KEEP)
    assert whole.status == "success", whole.error
    then = learned[step]

    answers: list = []
    # A preview changes nothing that is learned, and keeps ComfyUI from serving the first result.
    run = run_graph(graph(preview_every=STEPS + 1), keep=KEEP, on_event=press_at(step, ask, answers))
    assert run.status == "success", run.error
    assert answers == [(202, {"stopping": "train"})]
    assert all(data["stoppable"] for data in run.events(EVENT))
    concept = run.kept["concept"]
    assert torch.equal(concept.vectors["clip_l"], then)
    assert concept.provenance["steps"] == step
    assert len(run.kept["loss"]["loss"]) == step
    assert run.kept["loss"]["loss"] == whole.kept["loss"]["loss"][:step]
    assert run.executed[-2:] == ["apply", "text"], "the graph goes on with it"
    assert f"stopped at step {step} of {STEPS}" in run.ui["train"][OUTPUT][0]["text"]
    assert ask("GET", "/training") == (200, {}), "nothing trains any more"


def test_a_pretraining_is_found_and_remembered_but_has_nothing_to_stop_and_keep(
    run_graph, comfyui, ask, every_step, monkeypatch
):
    """The page offered a button that did nothing, and knew nothing of the pretraining after a reload."""
    recipes = next(value for key, value in sys.modules.items() if key.endswith(".training.contextualizer.recipes"))
    monkeypatch.setitem(recipes.NARROW, "vocabulary_captions", 200)
    chosen = {"text_encoder": "auto (for this model)", "captions": "concept_world", "file": "none", "real_share": 0.7}
    numbers = {"steps": 20, "batch": 2, "learning_rate": 0.0, "mask_rate": 0.3, "held_out": 10, "seed": 0}
    others = {"size": "auto (for this model)", "loss_mode": "masked", "continue_interrupted": True}
    nodes = {"model": call("LoadDemoModel")}
    nodes["train"] = call("PretrainContextualizer", clip=["model", 1], **chosen, **numbers, **others)
    answers: list = []

    def on_event(event: str, data: dict) -> None:
        if event == EVENT and data["step"] == 15 and not answers:
            answers.extend([ask("GET", "/training"), ask("POST", "/stop", json={"node_id": "train"})])

    run = run_graph(nodes, keep={"psi": ("train", 0)}, on_event=on_event)
    assert run.status == "success", run.error
    (status, found), (refused, _) = answers
    assert (status, refused) == (200, 409)
    assert found["train"]["steps"] == [*range(1, 11)]
    assert not found["train"]["stoppable"]
    assert run.ui["train"][OUTPUT][0]["steps"] == [*range(1, 21)]
    assert ask("GET", "/training") == (200, {})


def test_cancel_stays_cancel(run_graph, comfyui, ask, every_step):
    import comfy.model_management

    def on_event(event: str, data: dict) -> None:
        if event == EVENT and data["step"] == 2 and not data["ended"]:
            comfy.model_management.interrupt_current_processing()

    run = run_graph(graph(seed=11), keep=KEEP, on_event=on_event)
    assert run.status == "interrupted"
    assert "concept" not in run.kept
    assert run.events(EVENT)[-1]["ended"]
    assert "2 steps are kept" in run.events(EVENT)[-1]["text"]
    assert (run.events(EVENT)[-1]["end"], run.events(EVENT)[-1]["kept"]) == ("cancelled", 2)
    assert ask("GET", "/training") == (200, {})
    resumed = run_graph(graph(seed=11), keep=KEEP)
    assert resumed.ui["train"][OUTPUT][0]["steps"] == [*range(1, STEPS + 1)], "also the steps before it was cancelled"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("the paint is out"), "the paint is out"),
        (torch.OutOfMemoryError("Allocation on device"), "out of memory"),
        (KeyError(), "KeyError"),
    ],
    ids=["error", "memory", "no words"],
)
def test_what_goes_wrong_is_told_in_its_own_words(run_graph, comfyui, ask, every_step, monkeypatch, error, said):
    """And what is kept of it, which the next run goes on from; nothing is called learned."""
    advance = trainer().TrainingRun._advance

    def failing(run: object) -> None:
        if run.learner.done == 3:
            raise error
        advance(run)

    seed = 60 + len(said)
    with monkeypatch.context() as broken:
        broken.setattr(trainer().TrainingRun, "_advance", failing)
        run = run_graph(graph(seed=seed), keep=KEEP)
    assert run.status == "error"
    last = run.events(EVENT)[-1]
    assert (last["ended"], last["end"], last["kept"], last["word"]) == (True, "failed", 3, "")
    assert last["error"].startswith(said)
    assert last["ended_at"] > 0
    assert not any("learned" in data["text"] for data in run.events(EVENT))
    assert ask("GET", "/training") == (200, {})
    resumed = run_graph(graph(seed=seed), keep=KEEP)
    (whole,) = resumed.ui["train"][OUTPUT]
    assert (whole["end"], whole["word"], whole["error"], whole["kept"]) == ("learned", "kept", "", 0)


def test_the_news_add_up_to_the_whole(run_graph, comfyui, ask, every_step, monkeypatch):
    monkeypatch.setitem(comfyui.server.sockets_metadata, "another tab", {"feature_flags": {}})
    seen: list = []

    def on_event(event: str, data: dict) -> None:
        if event == EVENT and data["step"] == 4 and not seen:
            seen.extend(ask("GET", path) for path in ("/training?client=nobody", "/training?client=another+tab"))

    run = run_graph(graph(seed=12, preview_every=3), keep=KEEP, on_event=on_event)
    assert run.status == "success", run.error
    told = [(data, page) for event, data, page in run.sent if event == EVENT]
    assert {page for _, page in told} == {"test", "another tab"}, "the page that queued it, and one that asked"
    news, later = ([data for data, page in told if page == one] for one in ("test", "another tab"))
    assert later == news[-len(later) :]
    assert later[0]["step"] == 5
    json.dumps(news, allow_nan=False)
    assert news[0]["begins"] is True
    assert news[-1]["ended"] is True
    (whole,) = run.ui["train"][OUTPUT]
    assert [step for one in news for step in one["steps"]] == whole["steps"] == [*range(1, STEPS + 1)]
    assert [value for one in news for value in one["losses"].get("diffusion", ())] == whole["losses"]["diffusion"]
    assert whole["losses"]["diffusion"] == run.kept["loss"]["diffusion"]
    samples = [sample for one in news for sample in one["samples"]]
    assert [sample["step"] for sample in samples] == [0, 3, 6], "before the first step, too"
    assert samples == whole["samples"]
    for sample in samples:
        assert sample["type"] == "temp"
        assert (comfyui.base / "temp" / sample["filename"]).is_file()
    (status, running), _ = seen
    assert status == 200
    assert running["train"]["step"] == 4
    assert not running["train"]["ended"]


def test_a_page_that_asked_hears_of_the_later_trainings_of_that_run_alone(run_graph, comfyui, ask, monkeypatch):
    monkeypatch.setitem(comfyui.server.sockets_metadata, "another tab", {"feature_flags": {}})
    two = graph(seed=13, steps=2)
    behind = {"concept": ["train", 0], "steps": 1, "name": "more"}
    two["more"] = {**two["train"], "inputs": two["train"]["inputs"] | behind}
    asked: list = []

    def on_event(event: str, data: dict) -> None:
        if event == EVENT and not asked:
            asked.append(ask("GET", "/training?client=another+tab"))

    def told(run: object) -> set:
        return {data["node_id"] for event, data, page in run.sent if event == EVENT and page == "another tab"}

    keep = {"concept": ("more", 0)}
    assert told(run_graph(two, keep=keep, on_event=on_event)) == {"train", "more"}
    two["more"]["inputs"]["steps"] = 2
    assert told(run_graph(two, keep=keep)) == set()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"json": {"node_id": "train"}}, 404),
        ({"json": {"node_id": "../../etc"}}, 404),
        ({"json": {"node_id": 7}}, 400),
        ({"json": {"node_id": "train", "path": "x"}}, 400),
        ({"json": ["train"]}, 400),
        ({"data": b"not json"}, 400),
        ({}, 400),
    ],
)
def test_the_route_takes_ids_of_training_nodes_and_nothing_else(comfyui, ask, sent, status):
    answered, said = ask("POST", "/stop", **sent)
    assert answered == status
    assert said["error"]


def charset(name: str) -> dict:
    return {"data": b'{"node_id": "train"}', "headers": {"Content-Type": f"application/json; charset={name}"}}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param({"data": b"[" * 100_000}, id="too deep a list"),
        pytest.param({"data": b'{"node_id":' * 50_000}, id="too deep a table"),
        pytest.param({"data": b'{"node_id": ' + b"9" * 5000 + b"}"}, id="too long a number"),
        pytest.param({"data": b"\xff\xfe{"}, id="no UTF-8"),
        pytest.param({"data": b'"train"'}, id="no table"),
        pytest.param(charset("klingon"), id="unknown encoding"),
        pytest.param(charset("hex"), id="an encoding that is not of text"),
        pytest.param(charset("undefined"), id="an encoding that always fails"),
        pytest.param(charset("utf-32"), id="another encoding"),
    ],
)
def test_no_route_breaks_on_what_it_is_sent(comfyui, ask, sent):
    routes = [route for route in comfyui.server.routes if route.path.startswith("/contextual_inversion")]
    routes = [route for route in routes if "{" not in route.path]  # those of files: test_saved_files.py
    assert {route.method for route in routes} == {"GET", "POST"}
    for route in routes:
        status, said = ask(route.method, route.path.removeprefix("/contextual_inversion"), **sent)
        assert (status, set(said)) == ((400, {"error"}) if route.method == "POST" else (200, set())), route.path


@pytest.mark.parametrize(
    "asked", ["", "?client=test", "?client=nobody", "?client=%ff", "?client=a&client=b", "?client"]
)
def test_a_page_that_opens_before_the_first_prompt_is_answered(comfyui, ask, asked, monkeypatch):
    """ComfyUI's server gets its `last_prompt_id` with the first prompt: until then a page with a training got a 500."""
    monkeypatch.delattr(comfyui.server, "last_prompt_id", raising=False)
    assert ask("GET", f"/training{asked}") == (200, {})


def test_curves_are_thinned_to_means(comfyui):
    view = module("page.live_view")
    values = [float(step) for step in range(10 * view.POINTS)]
    thin = view.thinned(range(1, len(values) + 1), {"loss": values})
    assert len(thin["steps"]) == len(thin["losses"]["loss"]) == view.POINTS
    assert thin["steps"][-1] == len(values)
    assert sum(thin["losses"]["loss"]) / view.POINTS == pytest.approx(sum(values) / len(values))
    assert view.thinned([1, 2], {"loss": [float("nan"), 3.0]})["losses"]["loss"] == [None, 3.0]
