"""What the panel of a training says before, while and after it runs, in ComfyUI's own page, classic and Nodes 2.0.

Photographs of every state go to out/browser; they are there to be looked at.
"""

import json

import pytest

from .conftest import Server, sibling

NODE, SAVING = 6, 24
"""A training in train_a_word, and the node that saves its word."""
ALONE = [1, 2, 4, 5, NODE, SAVING]
"""The nodes that belong to it."""
MODES = {"classic": False, "nodes2": True}
PANEL = "#panel-under-test"
PARTS = ("badge", "status", "sentence", "alert", "type", "remark", "message", "pair", "strip", "losses")
TRAINED = {
    "version": 1, "node_id": str(NODE), "workflow": None, "step": 6, "total_steps": 6, "seconds_left": None, "text": "",
    "ended": False, "end": "", "error": "", "kept": 0, "ended_at": 0, "word": "", "stoppable": True, "steps": [1, 2, 3],
    "losses": {"diffusion": [0.4, 0.3, 0.2], "core/embedding": [0.2, 0.2, 0.1]}, "samples": [],
}  # fmt: skip
ENDS = {
    "learned": ({"word": "my-word"}, "Learned in 6 steps", ""),
    "stopped": ({"word": "my-word", "step": 4}, "Stopped at step 4 of 6; the word is kept as it was then", ""),
    "early": ({"word": "my-word", "error": "diffusion not finite at step 5"}, "Ended early", "not finite at step 5"),
    "cancelled": ({"kept": 4}, "Cancelled. 4 steps are kept; Run goes on from there.", ""),
    "failed": (
        {"kept": 4, "error": "out of paint"},
        "Failed",
        "out of paint\n4 steps are kept; Run goes on from there.",
    ),
}
COLOURS = """(() => {
    const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
        context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = (one) => {
        for (let part = one; part; part = part.parentElement) {
            const colour = rgba(getComputedStyle(part).backgroundColor);
            if (colour[3] > 250) return colour;
        }
        return [255, 255, 255, 255];
    };
    const own = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const all = [...document.querySelectorAll('.ci-training *')];
    return all.filter((one) => own(one) && one.checkVisibility()).map((one) => {
        const style = getComputedStyle(one);
        const [a, b] = [light(rgba(one instanceof SVGElement ? style.fill : style.color)), light(ground(one))];
        return [one.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
})()"""
"""Each text of the panels that can be seen, and its contrast with what is behind it (WCAG)."""


def opened(server, nodes_2: bool, light: bool = False, **changes: object):
    """A page with one training of train_a_word and what it needs, its panel named."""
    page = server.open(nodes_2=nodes_2, light=light, width=1440, height=900)
    server.load(page, "train_a_word", NODE)
    page.run(
        "(() => { const { rootGraph } = comfyAPI.app.app;"
        f"rootGraph.nodes.filter(({{ id }}) => !{ALONE}.includes(Number(id)))"
        ".forEach((node) => rootGraph.remove(node)); })()"
    )
    choose(page, **changes)
    name_panel(page)
    return page


def name_panel(page) -> None:
    find = f"comfyAPI.app.app.rootGraph?.getNodeById({NODE})?.widgets?.find((one) => one.name === 'training')?.element"
    page.wait(f"(() => {{ const view = {find}; if (view) view.id = '{PANEL[1:]}'; return view?.isConnected; }})()")


def look(page, *, width: int = 400, more: int = 160) -> None:
    """The panel at the lower edge of the window, on a node so wide and so much higher than it has to be."""
    page.run(
        f"(() => {{ const {{ canvas, rootGraph }} = comfyAPI.app.app; const node = rootGraph.getNodeById({NODE});"
        f"node.setSize([{width}, node.computeSize()[1] + {more}]); canvas.ds.scale = 1;"
        "canvas.ds.offset = [100 - node.pos[0], innerHeight - 20 - node.pos[1] - node.size[1]];"
        "canvas.setDirty(true, true); })()"
    )
    page.run("new Promise((resolve) => setTimeout(resolve, 700))")


def choose(page, **values: object) -> None:
    """Sets widgets as somebody who types does."""
    page.run(
        f"(() => {{ const node = comfyAPI.app.app.rootGraph.getNodeById({NODE});"
        f"for (const [name, value] of Object.entries({json.dumps(values)})) {{"
        "const widget = node.widgets.find((one) => one.name === name);"
        "widget.value = value; widget.callback?.(value); }"
        "document.dispatchEvent(new Event('change')); })()"
    )


def tell(page, event: str, **detail: object) -> None:
    """The page hears of something, as from the server."""
    page.run(f"comfyAPI.api.api.dispatchEvent(new CustomEvent('{event}', {{ detail: {json.dumps(detail)} }}))")


def hear_of_training(page, **facts: object) -> None:
    tell(page, "contextual_inversion.training", **(TRAINED | facts))


def drawn(server, page) -> list[dict]:
    """Three samples of a training among the server's temporary files."""
    found = []
    for step in (0, 3, 6):
        name = f"contextual_inversion_test_{step}.png"
        page.photograph(server.base / "temp" / name, "canvas")
        found.append({"step": step, "filename": name, "subfolder": "", "type": "temp"})
    return found


def seen(page) -> dict[str, str]:
    """What each part of the panel says; parts that are not to be seen are not there."""
    return page.run(
        f"Object.fromEntries({json.dumps(PARTS)}.map((part) => [part, document.querySelector(`{PANEL} .ci-${{part}}`)])"
        ".filter(([, one]) => one?.checkVisibility())"
        ".map(([part, one]) => [part, (part === 'status' ? one.querySelector('[role=status]') : one).textContent]))"
    )


def wait_for(page, part: str, text: str, seconds: float = 60) -> None:
    page.wait(f"document.querySelector('{PANEL} .ci-{part}').textContent.includes({json.dumps(text)})", seconds)


@pytest.mark.parametrize("mode", MODES)
def test_the_panel_says_what_is_then_trained(comfyui_server, pictures, mode):
    """The sentence before the run, while it runs and the numbers that the server reports at the end are the same; the
    result of that run is called an earlier one in a new page."""
    server = comfyui_server
    page = opened(server, MODES[mode], steps=0, batch=0, learning_rate=0, vectors=0, preview_every=0)
    wait_for(page, "sentence", "Demo model recipe: 200 steps, rate 1e-2, batch 4, 3 vectors")
    look(page)
    assert seen(page)["status"] == "Not run yet"
    assert "Run" in seen(page)["message"]
    page.photograph(pictures / f"{mode}-panel-before.png")
    choose(page, steps=4, batch=2, learning_rate=5e-6, vectors=1, preview_every=2, seed=500 + MODES[mode])
    sentence = "Demo model recipe: 4 steps, rate 5e-6, batch 2, 1 vector"
    wait_for(page, "sentence", sentence)

    page.run("window.said = []; (function note() { window.said.push(document.querySelector("
             f"'{PANEL} .ci-sentence').textContent); requestAnimationFrame(note); }})()")  # fmt: skip
    page.run("comfyAPI.app.app.queuePrompt(0)")
    wait_for(page, "status", "Learned in 4 steps", 400)
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")
    while_running = page.run("[...new Set(window.said.map((one) => one.split(';')[0]))]")
    assert while_running == [sentence]
    assert page.run(f"document.querySelector('{PANEL} .ci-sentence').textContent").startswith(f"{sentence}; about ")
    entry = list(server.ask("/history").values())[-1]
    whole = entry["outputs"][str(NODE)]["contextual_inversion_training"][0]
    assert whole["total_steps"] == whole["step"] == 4
    plan = whole["plan"]
    assert (plan["rate"], plan["batch"], plan["vectors"], plan["recipe"]) == (5e-6, 2, 1, "Demo model")
    assert [sample["step"] for sample in whole["samples"]] == [0, 2, 4]
    after = seen(page)
    assert after["type"].startswith("Type <my-word> in a prompt")
    assert "badge" not in after
    page.wait(
        f"[...document.querySelectorAll('{PANEL} .ci-pair img')].filter((one) => one.naturalWidth > 0).length === 2"
    )
    look(page)
    page.photograph(pictures / f"{mode}-panel-after.png")

    # Other choices change what will be done, not what is said of what was done.
    choose(page, steps=0)
    wait_for(page, "sentence", "200 steps")
    assert seen(page)["status"] == "Learned in 4 steps"
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")  # ComfyUI saves its draft a moment later
    page.reload()
    server.wait_until_ready(page)
    name_panel(page)
    wait_for(page, "status", "Learned in 4 steps")
    choose(page, steps=0)
    wait_for(page, "sentence", "200 steps")
    after = seen(page)
    assert after["badge"].startswith("Earlier run, ")
    assert after["status"] == "Learned in 4 steps"
    look(page)
    page.photograph(pictures / f"{mode}-panel-earlier.png")
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_every_end_is_said_in_words(comfyui_server, pictures, mode):
    page = opened(comfyui_server, MODES[mode])
    look(page)
    for end, (facts, status, alert) in ENDS.items():
        hear_of_training(page, begins=True)
        assert seen(page)["status"] == "Step 6 of 6"
        hear_of_training(page, ended=True, end=end, steps=[], losses={}, **facts)
        said = seen(page)
        assert status in said["status"], end
        assert said.get("alert", "").endswith(alert), end
        assert ("alert" in said) == bool(alert), end
        assert ("type" in said) == ("word" in facts), end
        assert ("earned" in " ".join(said.values())) == (end == "learned"), end
        look(page)
        page.photograph(pictures / f"{mode}-panel-{end}.png", PANEL, 20)
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_an_error_stands_in_the_panel_and_nothing_is_called_learned(comfyui_server, pictures, mode):
    """Also one that comes before the training itself, out of memory, and after a result of an earlier run."""
    server = comfyui_server
    page = opened(server, MODES[mode], preview_prompt="no place for it", preview_every=1, steps=2)
    hear_of_training(page, begins=True, ended=True, end="learned", word="my-word")
    assert "Learned" in seen(page)["status"]
    page.run("comfyAPI.app.app.queuePrompt(0)")
    wait_for(page, "alert", "preview_prompt needs a {}", 120)
    said = seen(page)
    assert said["status"] == "Failed"
    assert "earned" not in " ".join(said.values())
    look(page)
    page.photograph(pictures / f"{mode}-panel-error.png")

    # After a reload it stands there still, as that of an earlier run.
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")
    page.reload()
    server.wait_until_ready(page)
    name_panel(page)
    wait_for(page, "alert", "preview_prompt needs a {}")
    assert seen(page)["badge"].startswith("Earlier run")

    for type_, message, words in (
        ("torch.OutOfMemoryError", "Allocation on device\nThis error means ...", "Out of memory: "),
        ("ValueError", "CLIP has no words\n", "CLIP has no words"),
        ("KeyError", "\n", "KeyError"),
    ):  # fmt: skip
        tell(page, "execution_start", prompt_id="a run")
        page.run(f"comfyAPI.api.api.dispatchEvent(new CustomEvent('executing', {{ detail: '{NODE}' }}))")
        wait_for(page, "status", "Getting ready")
        failed = {"node_id": str(NODE), "exception_type": type_, "exception_message": message}
        tell(page, "execution_error", prompt_id="a run", **failed)
        wait_for(page, "status", "Failed")
        assert seen(page)["alert"].startswith(words)
    tell(page, "execution_start", prompt_id="another")
    page.run(f"comfyAPI.api.api.dispatchEvent(new CustomEvent('executing', {{ detail: '{NODE}' }}))")
    wait_for(page, "status", "Getting ready")
    tell(page, "execution_interrupted", prompt_id="another", node_id=str(NODE))
    wait_for(page, "status", "Cancelled before the first step")
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_from_the_cache_and_what_was_there_before_are_labelled(comfyui_server, mode):
    page = opened(comfyui_server, MODES[mode])
    hear_of_training(page, begins=True, ended=True, end="learned", word="my-word", ended_at=1.8e9)
    assert "badge" not in seen(page)
    tell(page, "execution_start", prompt_id="a run")
    assert seen(page)["badge"].startswith("Earlier run, ")
    tell(page, "execution_cached", prompt_id="a run", nodes=[str(NODE)])
    wait_for(page, "badge", "nothing had changed")
    tell(page, "execution_start", prompt_id="another")
    hear_of_training(page, begins=True)
    assert "badge" not in seen(page)
    page.close()


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_it_is_read_in_every_theme_and_worked_by_keyboard(comfyui_server, pictures, mode, light):
    """Contrast of at least 4.5 on a coloured node, and everything by Tab, Enter, arrows and Escape."""
    server = comfyui_server
    page = opened(server, MODES[mode], light)
    samples = drawn(server, page)
    ended = {"ended": True, "end": "early", "word": "my-word", "error": "not finite", "text": "waits in a folder"}
    hear_of_training(page, begins=True, samples=samples, picture=samples[0], **ended)
    look(page, more=400)
    page.wait(f"[...document.querySelectorAll('{PANEL} img')].every((one) => one.naturalWidth > 0)")
    poor = {text: contrast for text, contrast in page.run(COLOURS) if contrast < 4.5}
    assert poor == {}
    page.photograph(pictures / f"{mode}-panel-{'light' if light else 'dark'}.png")

    def focused() -> str:
        return page.run("document.activeElement.closest('.ci-view') ? document.activeElement.outerHTML : ''")

    page.run(f"document.querySelector('{PANEL} .ci-type button').focus()")
    reached = []
    for _ in range(6):
        reached.append(focused())
        page.key("Tab")
    for part in (">Copy<", "ci-alert", "step 6: enlarge", "training picture: enlarge", 'title="step 6"', ">Log<"):
        assert any(part in one for one in reached), (part, reached)
    nodes = page.run("comfyAPI.app.app.rootGraph.nodes.length")
    page.run(f"document.querySelector('{PANEL} .ci-strip [aria-pressed=true]').focus()")
    page.key("ArrowLeft")
    assert 'title="step 3"' in focused()
    assert page.run(f"document.querySelector('{PANEL} .ci-sample figcaption').textContent") == "step 3"
    page.run(f"document.querySelector('{PANEL} .ci-sample button').focus()")
    page.key("Enter")
    shown = "[...document.querySelectorAll('dialog.ci-large figcaption')].map((one) => one.textContent)"
    page.wait("document.querySelector('dialog.ci-large[open]')")
    assert page.run(shown) == ["step 3", "training picture"]
    page.key("ArrowRight")
    assert page.run(shown) == ["step 6", "training picture"]
    page.photograph(pictures / f"{mode}-panel-enlarged-{'light' if light else 'dark'}.png")
    page.key("Escape")
    page.wait("!document.querySelector('dialog.ci-large')")
    assert "enlarge" in focused()
    assert page.run("comfyAPI.app.app.rootGraph.nodes.length") == nodes
    page.close()


@pytest.mark.parametrize("mode", MODES)
def test_copy_gives_what_to_type(comfyui_server, mode):
    """Also where the page may not write to the clipboard, as one that is not served securely."""
    page = opened(comfyui_server, MODES[mode])
    hear_of_training(page, begins=True, ended=True, end="learned", word="my-word")
    look(page)
    for secure in (True, False):
        page.run(
            "window.copied = []; Object.defineProperty(navigator, 'clipboard', { configurable: true, value: "
            + ("{ writeText: async (text) => window.copied.push(text) }" if secure else "undefined")
            + " }); document.execCommand = () => window.copied.push(document.activeElement.value) > 0;"
        )
        page.click(f"{PANEL} .ci-type button")
        page.wait(f"document.querySelector('{PANEL} .ci-type button').textContent === 'Copied'")
        assert page.run("window.copied") == ["<my-word>"]
        page.wait(f"document.querySelector('{PANEL} .ci-type button').textContent === 'Copy'")
    page.close()


CUT_OFF = f"""(() => {{
    const box = document.querySelector('{PANEL}').getBoundingClientRect();
    const wide = (b) => b.left < box.left - 1 || b.right > box.right + 1;
    const out = (b) => wide(b) || b.top < box.top - 1 || b.bottom > box.bottom + 1;
    return [...document.querySelectorAll('{PANEL} :is(button, [role=status], .ci-sentence, .ci-chart)')]
        .filter((one) => one.checkVisibility() && !one.closest('.ci-strip') && out(one.getBoundingClientRect()))
        .map((one) => one.className || one.textContent);
}})()"""


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_cut_off_in_a_narrow_or_short_node(comfyui_server, pictures, mode):
    page = opened(comfyui_server, MODES[mode])
    pictured = {"samples": drawn(comfyui_server, page)}
    pictured["picture"] = pictured["samples"][0]
    stopped = {"ended": True, "end": "stopped", "word": "my-word"}
    for width, more in ((300, 0), (400, 0), (400, 300), (700, 0), (900, 300)):
        for facts in ({"step": 3}, {"step": 3} | pictured, stopped, stopped | pictured):
            hear_of_training(page, begins=True, **facts)
            look(page, width=width, more=more)
            assert page.run(CUT_OFF) == [], (width, more, facts)
        page.photograph(pictures / f"{mode}-panel-{width}-{more}.png", PANEL, 20)
    page.close()


def test_a_server_that_has_run_nothing_yet_answers(browser, comfyui_path, repository, tmp_path):
    """A page with a training asks it before the server has what its first prompt gives it."""
    workflows = sibling(repository / "tests" / "comfy" / "test_workflows.py")
    base = tmp_path / "base"
    with workflows.running_server(comfyui_path, repository, base) as address:
        page = opened(Server(address, base, browser), nodes_2=False)
        wait_for(page, "sentence", "200 steps")
        assert seen(page)["status"] == "Not run yet"
        told = (base / "log.txt").read_text(errors="replace")
        assert "got prompt" not in told
        assert "Error handling request" not in told
        assert "Traceback" not in told
        page.close()
