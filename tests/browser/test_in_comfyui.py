"""The views in ComfyUI's own page, classic canvas and Nodes 2.0: run, point, pin, type, reload, stop and keep.

Photographs of every state go to out/browser; they are there to be looked at.
"""

import json

import pytest

PREFIX = "ContextualInversion"
PROMPT = "a photo of a red castle on the grass"
SHOW, TRAIN = 8, 10
MODES = {"classic": False, "nodes2": True}


def call(name: str, /, **inputs: object) -> dict:
    return {"class_type": PREFIX + name, "inputs": inputs}


def core(name: str, /, **inputs: object) -> dict:
    return {"class_type": name, "inputs": inputs}


def graph(seed: int) -> dict:
    """A picture with its attention, and a training long enough to be stopped."""
    shown = {"attention": ["5", 1], "prompt": PROMPT, "image": ["7", 0], "clip": ["1", 1]}
    numbers = {"steps": 5000, "learning_rate": 0.01, "batch": 2, "vectors": 1, "seed": seed, "preview_every": 5}
    sampled = {"model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 3}
    return {
        "1": call("LoadDemoModel"),
        "2": core("CLIPTextEncode", clip=["1", 1], text=PROMPT),
        "3": core("CLIPTextEncode", clip=["1", 1], text=""),
        "4": core("EmptyLatentImage", width=128, height=128, batch_size=2),
        "5": call("RecordAttention", model=["1", 0], step_bins=3),
        "6": core("KSampler", **sampled, steps=8, cfg=4.0, sampler_name="ddim", scheduler="normal", denoise=1.0),
        "7": core("VAEDecode", samples=["6", 0], vae=["1", 2]),
        str(SHOW): call("ShowAttention", **shown),
        "9": call("DemoImages", concept="castle", count=2, background="grass", seed=0),
        str(TRAIN): call(
            "TrainConcept",
            model=["1", 0],
            clip=["1", 1],
            vae=["1", 2],
            images=["9", 0],
            class_word="house",
            name="kept",
            continue_interrupted=False,
            **numbers,
        ),
        "11": call("SaveConcept", concept=[str(TRAIN), 0], name="kept", if_taken="replace", embedding_file=False),
    }


PLACES = {SHOW: (100, 100), TRAIN: (700, 100)}


def load(page, seed: int) -> None:
    """Opens the graph, the two nodes with views side by side and the others far away."""
    page.run(f"comfyAPI.app.app.loadApiJson({json.dumps(graph(seed))}, 'views')")
    page.run(
        f"(() => {{ const app = comfyAPI.app.app; const places = {json.dumps(PLACES)};"
        "for (const node of app.rootGraph.nodes) {"
        "node.pos = places[node.id] ?? [-8000 + 500 * node.id, 0];"
        f"if (node.id == {SHOW}) node.setSize([520, 1020]); }}"
        "app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; app.canvas.setDirty(true, true); })()"
    )


def pinned(page) -> list[str]:
    return page.run("[...document.querySelectorAll('.ci-chip[aria-selected=true]')].map((chip) => chip.textContent)")


def overlay(page) -> dict:
    """What lies over the picture: its description, and how unlike the colours of its pixels are."""
    return page.run(
        "(() => { const canvas = document.querySelector('.ci-frame canvas');"
        "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "return { label: canvas.getAttribute('aria-label'), shades: new Set(data).size }; })()"
    )


def chip(word: int) -> str:
    """The selector of a word of the prompt, from 1."""
    return f".ci-word:nth-child({word + 1})"


@pytest.mark.parametrize("mode", MODES)
def test_views_in_the_page(comfyui_server, pictures, mode):
    server, seed = comfyui_server, list(MODES).index(mode)
    page = server.open(nodes_2=MODES[mode], light=False, width=1300, height=1200)
    load(page, seed)
    page.wait("document.querySelector('.ci-attention')")
    page.run("comfyAPI.app.app.queuePrompt(0)")

    # The training shows its losses and samples while it runs, and stops when told to.
    page.wait("document.querySelectorAll('.ci-chart polyline').length > 0", 400)
    page.wait("document.querySelectorAll('.ci-strip img').length > 0", 400)
    page.photograph(pictures / f"{mode}-training.png")
    page.run("[...document.querySelectorAll('.ci-training .ci-button')].at(-1).click()")
    page.wait("document.querySelector('.ci-status').textContent.includes('is kept as it was then')", 400)
    page.wait("document.querySelector('.ci-chip')", 400)
    entry = server_entry(server, page)
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert len(list(server.base.rglob("kept*.safetensors"))) >= 1, "the node behind it ran"

    # Pointing at a word lays its map over the picture.
    page.point_at(5, 5)
    assert overlay(page)["shades"] == 1, "nothing yet"
    page.point(chip(6))
    page.wait("document.querySelector('.ci-tags span')")
    seen = overlay(page)
    assert "castle" in seen["label"]
    assert seen["shades"] > 20
    page.click(chip(6))
    page.click(chip(9))
    page.point_at(5, 5)
    assert pinned(page) == ["castle", "grass"]
    assert "castle, grass" in overlay(page)["label"]
    page.photograph(pictures / f"{mode}-dark.png")

    # The keyboard does it too.
    page.run(f"document.querySelector('{chip(9)}').focus()")
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    page.key("Enter")
    assert pinned(page) == ["castle", "on", "grass"]
    page.key("Escape")
    assert pinned(page) == []
    page.key("ArrowLeft")
    page.key("Enter")
    assert pinned(page) == ["castle"]

    # Fewer layers give another map; the slider says which.
    before = page.run("document.querySelector('.ci-frame canvas').toDataURL()")
    page.run(
        "(() => { const slider = document.querySelector('.ci-range input'); slider.value = slider.max;"
        "for (const kind of ['input', 'change']) slider.dispatchEvent(new Event(kind)); })()"
    )
    assert page.run("document.querySelector('.ci-frame canvas').toDataURL()") != before
    said = page.run("document.querySelector('.ci-range output').textContent")
    assert said not in ("", "all")

    # After a reload everything is there again: choice, maps, losses. In the other theme, to see that one as well.
    page.run("new Promise((resolve) => setTimeout(resolve, 1500))")  # ComfyUI saves its draft a moment later
    server.ask("/settings", {"Comfy.ColorPalette": "light"})
    page.reload()
    server.wait_until_ready(page)
    page.wait("document.querySelector('.ci-chip') && document.querySelector('.ci-chart polyline')")
    assert pinned(page) == ["castle"]
    assert page.run("document.querySelector('.ci-range output').textContent") == said
    page.wait("document.querySelector('.ci-frame img').naturalWidth > 0")
    page.photograph(pictures / f"{mode}-light.png")

    # Without the temporary files there is a line instead of a broken picture.
    for path in (server.base / "temp").glob("contextual_inversion_atlas*"):
        path.unlink()
    page.reload()
    server.wait_until_ready(page)
    page.wait("document.querySelector('.ci-message')?.textContent.includes('Queue again')")
    assert page.run("document.querySelector('.ci-body').hidden")
    assert [error for error in page.errors if "contextual" in error.lower()] == []
    page.close()


def server_entry(server, page) -> dict:
    """The newest entry of the history, once the queue is empty."""
    page.wait(
        "comfyAPI.api.api.fetchApi('/queue').then((a) => a.json())"
        ".then((q) => q.queue_running.length + q.queue_pending.length === 0)",
        400,
    )
    return next(iter(server.ask("/history?max_items=1").values()))
