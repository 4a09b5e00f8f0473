"""Attention recorded through ComfyUI's own samplers: the pictures stay bit for bit, and the maps are the right ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PREFIX = "ContextualInversion"
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
