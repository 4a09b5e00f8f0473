"""A family whose denoiser reads several text encoders one behind another: SD3.5 with both CLIPs and T5."""

import pytest
import torch
from family_graphs import KEEP, SHOWN, SOCKETS, call, graph, said, stock

KINDS = ("sd35_t5",)
PROMPT = "a purple castle"


@pytest.mark.supports("ShowAttention: words of a chosen text encoder")
def test_maps_are_of_the_words_of_the_text_encoder_that_is_chosen(run_graph, loader):
    nodes = {"model": loader, "images": stock("EmptyImage", width=64, height=64, batch_size=1, color=0x2060C0)}
    sockets = {**SOCKETS, "image": ["images", 0]}
    nodes["attend"] = call("AttendImage", **sockets, prompt=PROMPT, timesteps="500", seed=0)
    for name in ("auto", "t5xxl", "clip_g"):
        show = {**SHOWN, "text_encoder": name, "overlay": 1.0, "captions": False}
        nodes[name] = call("ShowAttention", attention=["attend", 0], prompt=PROMPT, clip=["model", 1], **show)
    keep = {name: (name, 0) for name in ("auto", "t5xxl", "clip_g")}
    run = run_graph(nodes, keep={**keep, "attention": ("attend", 0)})
    assert run.status == "success", said(run)
    drawn = run.kept
    assert len(drawn["t5xxl"]) == len(drawn["clip_g"]) == len(PROMPT.split())
    assert torch.equal(drawn["auto"], drawn["t5xxl"]), "the largest"
    assert not torch.allclose(drawn["t5xxl"], drawn["clip_g"], atol=1e-3)
    assert drawn["attention"].recorder.maps().tokens == 77 + 77


def test_a_word_learns_in_the_text_encoders_that_are_chosen(run_graph, loader):
    run = run_graph(graph(loader, encoders="t5xxl"), keep=KEEP)
    assert run.status == "success", said(run)
    from contextual_inversion.core.models.words import starting_vectors
    from contextual_inversion.nodes.comfy.clip_session import encoders_of

    encoders = encoders_of(run.kept["clip"])
    assert set(encoders) == {"clip_l", "clip_g", "t5xxl"}
    for name, value in run.kept["concept"].vectors.items():
        assert torch.equal(value, starting_vectors(encoders[name], "house", 2)) == (name != "t5xxl"), name
