"""The UNet, transformer and judge stages on other latents, and where their weights go."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

pytest.importorskip("diffusers")

from contextual_inversion.core.models.tiny import config
from contextual_inversion.core.models.tiny.build import build_unet, build_vae
from contextual_inversion.core.models.tiny.load import load_part
from contextual_inversion.core.models.tiny.weights import read_tensors, tiny_weights_path, write_tensors
from contextual_inversion.core.world.concepts import CONCEPTS
from contextual_inversion.core.world.render import render
from contextual_inversion.core.world.scenes import TEXTURES, WORN
from contextual_inversion.pretraining import judge, tiny_model, transformer, unet
from contextual_inversion.pretraining.forms import Form, inherit
from contextual_inversion.pretraining.lessons import PRACTICE, SHARE_OF_PAIRS, chances, encoder_digest, object_shares
from contextual_inversion.pretraining.pictures import scene
from contextual_inversion.pretraining.processes import Processes

CHANNELS = config.LATENT_CHANNELS + 4
SHORT = {
    **config.TRANSFORMER,
    "in_channels": CHANNELS * config.FLOW_PATCH**2,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 1,
}
WIDE = {**config.UNET, "in_channels": CHANNELS, "out_channels": CHANNELS}


@pytest.fixture
def small(tmp_path: Path) -> Form:
    """A form with twenty latent channels and an untrained VAE."""
    numbers = {**config.VAE, "latent_channels": CHANNELS}
    form = Form(tmp_path / "form", {"vae": numbers, "unet": WIDE, "transformer": SHORT})
    torch.manual_seed(0)
    write_tensors(form.path("vae"), build_vae(numbers).state_dict(), {})
    return form


def test_a_grown_unet_does_what_the_narrow_one_does() -> None:
    narrow, wide = build_unet(), build_unet(WIDE)
    unet.inherit_unet(wide, narrow.state_dict())
    z, t, context = torch.randn(2, CHANNELS, 16, 16), torch.tensor([10, 700]), torch.randn(2, 77, config.WIDTH)
    with torch.no_grad():
        before = narrow(z[:, : config.LATENT_CHANNELS], t, encoder_hidden_states=context).sample
        after = wide(z, t, encoder_hidden_states=context).sample
    assert torch.allclose(after[:, : config.LATENT_CHANNELS], before, rtol=0, atol=float(before.abs().max()) * 1e-5)
    assert not after[:, config.LATENT_CHANNELS :].any()


def test_harder_scenes_are_visited_more_often() -> None:
    scenes = [scene("train", index) for index in range(400)]
    share = chances(scenes)
    pair = torch.tensor([one.second is not None for one in scenes])
    assert set(PRACTICE) == set(TEXTURES)
    textured = {name: torch.tensor([one.texture == name for one in scenes]) for name in PRACTICE}
    assert float(share.sum()) == pytest.approx(1)
    assert float(share[pair].sum()) == pytest.approx(SHARE_OF_PAIRS)
    for some in (pair, ~pair):
        plain = share[some & textured["plain"]][0]
        for name, often in PRACTICE.items():
            assert torch.allclose(share[some & textured[name]], often * plain, rtol=1e-6, atol=0)


def test_shares_of_objects_are_counted_place_by_place() -> None:
    scenes = [scene("train", index) for index in range(6)]
    masks = np.stack([drawn.subject + 2 * drawn.second for _, drawn in map(render, scenes)]).astype(np.uint8)
    shares = object_shares(masks, 16)
    assert shares.shape == (6, 2, 16, 16)
    for bit, share in enumerate(shares.double().unbind(1)):
        exact = np.bitwise_and(masks >> bit, 1).reshape(6, 16, 8, 16, 8).mean((2, 4))
        assert np.array_equal(share.numpy(), exact)
    assert [bool(share.any()) for share in shares[:, 1]] == [one.second is not None for one in scenes]


def test_objects_weigh_more_until_the_rate_is_gone() -> None:
    objects = torch.zeros(2, 2, 2, 2)
    objects[0, 0, 0, 0], objects[1, 1, 1, 1] = 1, 1
    weights = unet.stressed(objects, 0.5)
    assert weights.shape == (2, 1, 2, 2)
    assert float(weights.double().mean()) == pytest.approx(1)
    ratios = weights / weights[0, 0, 1, 1]
    assert ratios[0, 0, 0, 0] == pytest.approx(1 + unet.STRESS[0] / 2)
    assert ratios[1, 0, 1, 1] == pytest.approx(1 + unet.STRESS[1] / 2)
    assert torch.equal(unet.stressed(objects, 0.0), torch.ones(2, 1, 2, 2))


def test_only_the_named_axis_may_differ() -> None:
    own = {"a": torch.zeros(3, 2), "b": torch.zeros(2)}
    grown = inherit(own, {"a": torch.ones(2, 2)}, {"a": 0})
    assert torch.equal(grown["a"], torch.tensor([[1.0, 1], [1, 1], [0, 0]]))
    assert not own["a"].any()
    for state in ({"a": torch.ones(4, 2)}, {"a": torch.ones(3, 1)}, {"b": torch.ones(1)}):
        with pytest.raises(ValueError, match="does not fit"):
            inherit(own, state, {"a": 0})


def test_latents_are_told_apart_by_the_encoder_alone(small: Form) -> None:
    before = encoder_digest(small)
    state = read_tensors(small.path("vae"))
    decoder, encoder = (next(k for k in state if k.startswith(half)) for half in ("decoder.", "encoder."))
    write_tensors(small.path("vae"), {**state, decoder: state[decoder] + 1}, {})
    assert encoder_digest(small) == before
    write_tensors(small.path("vae"), {**state, encoder: state[encoder] + 1}, {})
    assert encoder_digest(small) != before


def test_a_form_takes_the_bundled_part_where_it_has_none(small: Form) -> None:
    theirs = small.load("text_encoder").state_dict()
    assert all(torch.equal(theirs[key], value) for key, value in load_part("text_encoder").state_dict().items())
    with pytest.raises(FileNotFoundError, match=r"unet\.safetensors"):
        small.load("unet")


def test_both_stages_write_into_their_form_alone(small: Form, tmp_path: Path) -> None:
    bundled = {part: tiny_weights_path(part).read_bytes() for part in ("unet", "judge")}
    unet.train_unet(tmp_path, Processes("cpu"), steps=2, batch=2, scenes=4, compile_network=False, form=small)
    judge.train_judge(tmp_path, Processes("cpu"), steps=1, batch=2, scenes=4, form=small)
    assert small.load("unet").config.in_channels == CHANNELS
    assert {part: tiny_weights_path(part).read_bytes() for part in bundled} == bundled
    state = torch.load(tmp_path / "unet.pt", weights_only=True)
    assert state["step"] == 2


def test_the_transformer_begins_as_nothing_and_learns(small: Form, tmp_path: Path) -> None:
    fresh = small.build("transformer")
    transformer.set_to_identity(fresh)
    told = {
        "encoder_hidden_states": torch.randn(2, 5, config.WIDTH),
        "pooled_projections": torch.randn(2, config.WIDTH),
        "timestep": torch.tensor([0.2, 0.9]),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    assert not fresh(torch.randn(2, 4, SHORT["in_channels"]), **told).sample.any()
    states: list[torch.Tensor] = []
    fresh.norm_out.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    x = torch.randn(2, 4, SHORT["in_channels"])
    fresh(x, **told)
    assert torch.equal(states[0], fresh.x_embedder(x))  # every block the identity
    transformer.train_transformer(
        tmp_path, Processes("cpu"), steps=2, batch=2, scenes=4, compile_network=False, form=small
    )
    state = torch.load(tmp_path / "transformer.pt", weights_only=True)
    assert state["step"] == 2
    learned = small.load("transformer")
    # The output learns first, and what is before it when the output is no longer 0.
    assert learned.proj_out.weight.any()
    lines = (tmp_path / "transformer.jsonl").read_text().splitlines()
    assert "val_caption" in lines[-1]


def test_the_judge_sees_each_concepts_class_in_its_look_without_its_parts() -> None:
    bare = [judge.judged_scene(i) for i in range(7, 1200, 12)]
    looks = {(c.super_category, c.colour, c.second_colour, c.texture) for c in CONCEPTS.values()}
    assert {(s.subject, s.colour, s.second_colour, s.texture) for s in bare} == looks
    assert {s.worn for s in bare} == set(WORN)
    drawn, masks = render(bare[0])
    kinds = judge.labels(bare[0], masks.subject, masks.second)["kind"]
    assert (kinds == judge.KINDS.index(bare[0].subject)).any()
    assert drawn.shape == (128, 128, 3)
    # Of the ordinary ones none has both colours: what the class is called is never in doubt.
    other = [judge.judged_scene(i) for i in range(1, 1200, 12)]
    assert not any((s.subject, s.colour, s.second_colour, s.texture) in looks for s in other)


def test_torchrun_passes_on_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes what abbreviates one of its own for that, also behind the script (findings/torchrun_options.sh)."""

    def seen(parser: argparse.ArgumentParser, arguments: object) -> None:
        raise Seen(parser)

    class Seen(Exception):
        pass

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", seen)
    with pytest.raises(Seen) as parsers:
        tiny_model.main([])
    ours = set(parsers.value.args[0]._option_string_actions) - {"-h", "--help"}
    theirs = set(get_args_parser()._option_string_actions)
    assert {"--begin", "--stage"} <= ours
    assert not {(one, other) for one in ours for other in theirs if other.startswith(one) and other != one}
