"""Attention recorded through ComfyUI's own samplers: the pictures stay bit for bit, and the maps are the right ones."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PREFIX = "ContextualInversion"
PACK = "contextual-inversion"
PROMPT = "a photo of a (red:1.3) cat, on the grass"


def graph(record=True, prompt=PROMPT, sampler=(), show=(), latent=()):
    """Demo model, one KSampler, one ShowAttention; `record` False leaves the recorder out."""
    model = ["r", 0] if record else ["m", 0]
    size = {"width": 128, "height": 96, "batch_size": 2} | dict(latent)
    nodes = {
        "m": {"class_type": f"{PREFIX}LoadDemoModel", "inputs": {}},
        "p": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["m", 1], "text": prompt}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["m", 1], "text": "blurry"}},
        "l": {"class_type": "EmptyLatentImage", "inputs": size},
        "s": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": ["p", 0],
                "negative": ["n", 0],
                "latent_image": ["l", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            }
            | dict(sampler),
        },
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0], "vae": ["m", 2]}},
    }
    if record:
        nodes["r"] = {
            "class_type": f"{PREFIX}RecordAttention",
            "inputs": {"model": ["m", 0], "step_bins": 8, "cells": 32},
        }
        nodes["a"] = shown(["r", 1], prompt, image=["d", 0]) if show is not None else None
        if show is None:
            del nodes["a"]
        else:
            nodes["a"]["inputs"].update(show)
    return nodes


def shown(attention, prompt, **inputs):
    given = {
        "attention": attention,
        "prompt": prompt,
        "words": "",
        "layers": "all",
        "resolution": "all",
        "start": 0.0,
        "end": 1.0,
        "normalise": "each word",
        "overlay": 0.75,
        "captions": True,
        "special_tokens": False,
        "padding": False,
        "mask_words": "",
        "mask_threshold": 0.4,
        "conditioning": 1,
    }
    return {"class_type": f"{PREFIX}ShowAttention", "inputs": given | inputs}


def report(run, node="a"):
    (found,) = run.ui[node]["contextual_inversion_attention"]
    return json.loads(json.dumps(found))


def decoded(found, folder):
    """The atlas as numbers (images, bins, groups, words, H, W)."""
    pixels = np.asarray(Image.open(Path(folder) / found["atlas"]["subfolder"] / found["atlas"]["filename"]))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2
    tile = found["tile"]
    rows = pixels.reshape(-1, tile["height"], tile["columns"], tile["width"]).swapaxes(1, 2)
    tiles = rows.reshape(-1, tile["height"], tile["width"])[: len(found["scale"])]
    shape = (found["images"], len(found["bins"]), len(found["groups"]), len(found["words"]))
    values = tiles / 255 * np.asarray(found["scale"])[:, None, None]
    return values.reshape(*shape, tile["height"], tile["width"])


SAMPLERS = [
    {"sampler_name": "euler", "scheduler": "normal"},
    {"sampler_name": "dpmpp_2m_sde", "scheduler": "karras"},
    {"sampler_name": "heun", "scheduler": "simple", "cfg": 1.0},
    {"sampler_name": "uni_pc", "scheduler": "sgm_uniform"},
    {"sampler_name": "lcm", "scheduler": "beta", "denoise": 0.6},
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one["sampler_name"])
def test_the_picture_is_the_same_and_the_maps_are_whole(run_graph, comfyui, sampler):
    keep = {"latent": ("s", 0)}
    plain = run_graph(graph(record=False, sampler=sampler), keep=keep).kept["latent"]["samples"].clone()
    run = run_graph(graph(sampler=sampler, show={"special_tokens": True, "padding": True}), keep=keep)
    assert run.status == "success", run.error
    assert torch.equal(run.kept["latent"]["samples"], plain)
    found = report(run)
    assert [w["text"] for w in found["words"]] == [
        "start",
        *["a", "photo", "of", "a", "red", "cat", ",", "on", "the", "grass"],
        "end",
        "padding",
    ]
    assert found["images"] == len(found["pictures"]) == 2
    assert {(g["height"], g["width"]) for g in found["groups"]} == {(12, 16), (6, 8)}
    assert found["bins"][0]["from"] == 0
    assert found["bins"][-1]["to"] == 1
    assert all(a["to"] == b["from"] for a, b in zip(found["bins"], found["bins"][1:], strict=False))
    values = decoded(found, comfyui.folder_paths.get_temp_directory())
    counts = np.array([len(w["positions"]) for w in found["words"]])
    assert sorted(p for w in found["words"] for p in w["positions"]) == list(range(77))
    totals = (values * counts[:, None, None]).sum(axis=3)
    for group, described in enumerate(found["groups"]):
        inner = totals[:, :, group, : described["height"], : described["width"]]
        np.testing.assert_allclose(inner, 1, atol=0.02)  # 8 bits a map


def learned(name="gear", rows=2):
    """An embedding file's content that ApplyConcept and `embedding:` know."""
    from contextual_inversion.core.concept import Concept

    return Concept(name, "cup", {"clip_l": torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)) * 0.03})


def test_words_masks_and_choices(run_graph, comfyui):
    from contextual_inversion.core.files import save_embedding

    save_embedding(learned(), Path(comfyui.folder_paths.get_folder_paths("embeddings")[0]), if_exists="replace")
    prompt = "a photo of a (embedding:gear:1.2) and a red surrealistically hat"
    keep = {"images": ("a", 0), "masks": ("a", 1)}
    show = {"words": "gear, red surrealistically", "mask_words": "gear", "mask_threshold": 0.0, "clip": ["m", 1]}
    nodes = graph(prompt=prompt, show=show)
    run = run_graph(nodes, keep=keep)
    assert run.status == "success", run.error
    words = {w["text"]: w for w in report(run)["words"]}
    assert report(run)["size"] is None, "layers of several sizes"
    assert len(words["gear"]["positions"]) == 2
    assert len(words["surrealistically"]["positions"]) > 1
    assert run.kept["images"].shape == (6, 96, 128, 3)
    soft = run.kept["masks"].clone()
    assert soft.shape == (2, 96, 128)
    assert torch.equal(soft.amax((1, 2)), torch.ones(2))
    # one word alone is its own mask, and a threshold cuts it
    nodes["a"]["inputs"].update(words="gear", mask_words="", mask_threshold=0.5, layers="up", resolution="16 cells")
    run = run_graph(nodes, keep=keep)
    assert run.executed == ["a"]
    assert report(run)["size"] == "12 x 16", "the viewer begins with the layers that are drawn"
    assert run.kept["images"].shape == (2, 96, 128, 3)
    assert set(run.kept["masks"].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(run.kept["masks"], (soft >= 0.5).float())


def test_it_says_what_to_connect(run_graph):
    unordered = graph()
    del unordered["a"]["inputs"]["image"]
    run = run_graph(unordered)
    assert run.status == "error"
    assert "Connect the sampled picture to `image`" in run.error["exception_message"]
    unused = graph()
    unused["s"]["inputs"]["model"] = ["m", 0]
    run = run_graph(unused)
    assert run.status == "error"
    assert "Connect the model that comes out of Record Attention" in run.error["exception_message"]
    run = run_graph(graph(show={"words": "dog"}))
    assert run.status == "error"
    assert "'dog' is not in the prompt" in run.error["exception_message"]
    run = run_graph(graph(show={"prompt": ""}))
    assert run.status == "invalid"
    assert "prompt is empty" in str(run.error["node_errors"])


def test_a_latent_orders_the_graph_as_well(run_graph):
    nodes = graph()
    del nodes["a"]["inputs"]["image"], nodes["d"]
    nodes["a"]["inputs"]["latent"] = ["s", 0]
    run = run_graph(nodes, keep={"images": ("a", 0)})
    assert run.status == "success", run.error
    assert report(run)["pictures"] == []
    assert run.kept["images"].shape == (20, 384, 512, 3)


def test_a_remembered_result_whose_files_are_gone_is_made_anew(run_graph, comfyui):
    nodes = graph(sampler={"seed": 31})
    first = run_graph(nodes)
    assert first.status == "success", first.error
    again = run_graph(nodes)
    assert again.executed == []
    assert report(again) == report(first), "the page is told all the same"
    file = Path(comfyui.folder_paths.get_temp_directory(), report(first)["atlas"]["filename"])
    file.unlink()
    mended = run_graph(nodes)
    assert mended.executed == ["a"]
    whole, before = report(mended), report(first)
    assert Path(file.parent, whole["atlas"]["filename"]).exists()
    assert {**whole, "atlas": 0, "pictures": 0} == {**before, "atlas": 0, "pictures": 0}
    assert run_graph(nodes).executed == [], "once is enough"


@pytest.fixture
def remembers_all(comfyui, monkeypatch):
    """ComfyUI remembers the results of many runs, as it does by default where there is memory for it."""
    limits = {"lru": 100, "ram": 0.0, "ram_inactive": 0.0}
    many = comfyui.execution.CacheType.LRU
    monkeypatch.setattr(
        type(comfyui), "executor", lambda self: self.execution.PromptExecutor(self.server, many, limits)
    )


def test_a_remembered_picture_is_not_shown_with_the_maps_of_another(remembers_all, run_graph):
    for seed in (32, 33):
        assert run_graph(graph(sampler={"seed": seed})).status == "success"
    # The recorder holds the last sampling alone.
    back = run_graph(graph(sampler={"seed": 32}, show={"words": "cat"}))
    assert "s" not in back.executed
    assert back.status == "error"
    assert "another one since" in back.error["exception_message"]
    last = run_graph(graph(sampler={"seed": 33}, show={"words": "cat"}))
    assert (last.status, last.executed) == ("success", ["a"]), last.error


def test_of_several_samplings_in_one_run_only_the_last_is_shown(run_graph):
    """The maps of the second sampling lay over the picture of the first."""
    nodes = graph(show={})
    again = nodes["s"]["inputs"] | {"seed": 2, "latent_image": ["s", 0], "denoise": 0.6}
    nodes |= {"s2": {"class_type": "KSampler", "inputs": again}}
    nodes["d2"] = {"class_type": "VAEDecode", "inputs": {"samples": ["s2", 0], "vae": ["m", 2]}}
    nodes["b"] = shown(["r", 1], PROMPT, image=["d2", 0], latent=["s2", 0])
    del nodes["a"]
    last = run_graph(nodes)
    assert last.status == "success", last.error
    alone = graph(sampler={"seed": 2, "latent_image": ["s1", 0], "denoise": 0.6})
    alone["s1"] = {"class_type": "KSampler", "inputs": nodes["s"]["inputs"] | {"model": ["m", 0]}}
    expected = run_graph(alone)
    assert report(last, "b")["scale"] == report(expected)["scale"]
    nodes["s2"]["inputs"] = again | {"model": ["m", 0]}
    nodes["b"] = shown(["r", 1], PROMPT, image=["d", 0])
    assert run_graph(nodes).status == "success"
    # Two samplings in one run: a picture does not tell which of them it comes from.
    nodes["s"]["inputs"]["seed"] = 3
    nodes["s2"]["inputs"] = again
    nodes["b"] = shown(["r", 1], PROMPT, image=["d2", 0])
    refused = run_graph(nodes)
    assert refused.status == "error"
    assert "Record Attention of its own" in refused.error["exception_message"]


@pytest.mark.parametrize("word", ["<my-goblet>", "embedding:my-goblet", "embedding:my-goblet,"])
def test_a_word_of_apply_concept_needs_its_text_encoder(comfyui, run_graph, word):
    """Without it the word's own positions were missing, and every later word's map was another token's."""
    prompt_words = sys.modules[next(name for name in sys.modules if name.endswith(f"{PACK}.nodes.comfy.prompt_words"))]
    with pytest.raises(ValueError, match="`clip`"):
        prompt_words.words_in(f"a photo of a {word} on the grass")
    clip = run_graph({"m": {"class_type": f"{PREFIX}LoadDemoModel", "inputs": {}}}, keep={"clip": ("m", 1)}).kept[
        "clip"
    ]
    assert prompt_words.words_in("a photo of a (cat:1.2) < 3", clip) == prompt_words.words_in(
        "a photo of a (cat:1.2) < 3"
    )
    assert prompt_words.words_in(f"a photo of a {word} on the grass", clip)[1] == 77


def test_a_picture_of_one_of_several_samplings_is_not_taken_for_a_later_one(comfyui):
    attention = sys.modules[next(name for name in sys.modules if name.endswith(f"{PACK}.nodes.attention"))]
    recorder = attention.AttentionRecorder()
    recorded = attention.RecordedAttention(recorder, while_sampling=True)
    picture, latents = torch.zeros(1, 8, 8, 3), [torch.full((1, 4, 1, 1), float(value)) for value in range(3)]

    def sampled(latent, run):
        recorder.finish(attention.digest(latent), run)

    sampled(latents[0], "first run")
    sampled(latents[1], "first run")
    assert recorded.belongs(latents[1])
    assert not recorded.belongs(latents[0])
    assert not recorded.belongs(picture)
    sampled(latents[2], "second run")
    assert recorded.belongs(latents[2])
    assert not recorded.belongs(picture), "it came along before this sampling"
    assert recorded.belongs(picture + 1)


def test_attend_image_sees_a_picture_that_exists(run_graph, comfyui):
    nodes = {
        "m": {"class_type": f"{PREFIX}LoadDemoModel", "inputs": {}},
        "i": {
            "class_type": f"{PREFIX}DemoImages",
            "inputs": {"concept": "goblet", "count": 2, "background": "snow", "seed": 0},
        },
        "t": {
            "class_type": f"{PREFIX}AttendImage",
            "inputs": {
                "model": ["m", 0],
                "clip": ["m", 1],
                "vae": ["m", 2],
                "image": ["i", 0],
                "prompt": "a cup in the snow",
                "timesteps": "600, 300",
                "seed": 0,
            },
        },
        "a": shown(["t", 0], "a cup in the snow", image=["i", 0]),
    }
    run = run_graph(nodes)
    assert run.status == "success", run.error
    found = report(run)
    assert found["images"] == 2
    assert len(found["bins"]) == 2
    nodes["t"]["inputs"]["timesteps"] = "600, soon"
    run = run_graph(nodes)
    assert run.status == "invalid"
    assert "numbers from 0 to 999" in str(run.error["node_errors"])


def test_diagnose_concept(run_graph, comfyui):
    from contextual_inversion.core.files import save_embedding

    save_embedding(learned(), Path(comfyui.folder_paths.get_folder_paths("embeddings")[0]), if_exists="replace")
    nodes = {
        "m": {"class_type": f"{PREFIX}LoadDemoModel", "inputs": {}},
        "l": {
            "class_type": f"{PREFIX}LoadConcept",
            "inputs": {"file": "embeddings/gear.safetensors", "clip": ["m", 1]},
        },
        "d": {
            "class_type": f"{PREFIX}DiagnoseConcept",
            "inputs": {
                "model": ["m", 0],
                "clip": ["m", 1],
                "concept": ["l", 0],
                "compare_with": ["l", 0],
                "prompts": "concept_world",
                "own_prompts": "a {} in the snow",
                "class_word": "",
                "most_prompts": 2,
                "images": 1,
                "steps": 2,
                "guidance": 4.0,
                "width": 128,
                "height": 128,
                "seed": 0,
            },
        },
    }
    run = run_graph(nodes, keep={"table": ("d", 0), "plot": ("d", 1), "json": ("d", 2)})
    assert run.status == "success", run.error
    figures = json.loads(run.kept["json"])
    one, other, class_word = figures["subjects"]
    assert one["means"] == other["means"] != class_word["means"]
    assert class_word["label"] == "cup (class word)"
    assert [p["prompt"] for p in one["prompts"]] == ["a {} in the snow"]
    assert "| gear |" in run.kept["table"]
    assert run.kept["plot"].shape[3] == 3
    assert len(run.ui["d"]["images"]) == 1


def test_two_paths_are_recorded_without_changing_them(run_graph, comfyui):
    from contextual_inversion.core.files import save_embedding

    save_embedding(learned(), Path(comfyui.folder_paths.get_folder_paths("embeddings")[0]), if_exists="replace")
    latents = []
    for record in (False, True):
        nodes = graph(record=record, prompt="a photo of a cup on the grass", sampler={"steps": 2})
        model = nodes["s"]["inputs"]["model"]
        nodes["c"] = {
            "class_type": f"{PREFIX}LoadConcept",
            "inputs": {"file": "embeddings/gear.safetensors", "clip": ["m", 1]},
        }
        nodes["x"] = {
            "class_type": f"{PREFIX}DualPath",
            "inputs": {
                "model": model,
                "clip": ["m", 1],
                "concept": ["c", 0],
                "prompt": "a photo of a <gear> on the grass",
                "alpha": 0.7,
                "modulated_path": "soft",
                "start_percent": 0.0,
                "end_percent": 1.0,
                "alpha_per_block": "",
            },
        }
        nodes["s"]["inputs"].update(model=["x", 0], positive=["x", 1])
        run = run_graph(nodes, keep={"latent": ("s", 0)})
        assert run.status == "success", run.error
        latents.append(run.kept["latent"]["samples"].clone())
    assert torch.equal(*latents)
    values = decoded(report(run), comfyui.folder_paths.get_temp_directory())
    assert values.max() > 0


def test_prompts_that_were_put_one_behind_another_are_shown(run_graph):
    """ConditioningConcat: the second prompt's words stand 77 positions further on, as if each had been shown alone."""
    first, second = "a photo of a red cat", "grass under a blue sky"
    nodes = graph(prompt=first, show={"prompt": f"{first} BREAK {second}", "words": "cat, sky"})
    nodes["q"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["m", 1], "text": second}}
    nodes["c"] = {
        "class_type": "ConditioningConcat",
        "inputs": {"conditioning_to": ["p", 0], "conditioning_from": ["q", 0]},
    }
    nodes["s"]["inputs"]["positive"] = ["c", 0]
    run = run_graph(nodes, keep={"images": ("a", 0)})
    assert run.status == "success", run.error
    places = {word["text"]: word["positions"] for word in report(run)["words"]}
    assert places["cat"] == [6]
    assert places["sky"] == [77 + 5]
    assert run.kept["images"].shape[0] == 4
    nodes["a"]["inputs"].update(prompt=first, words="")
    failed = run_graph(nodes, keep={"images": ("a", 0)})
    assert failed.status == "error"
    assert "BREAK" in failed.error["exception_message"]
