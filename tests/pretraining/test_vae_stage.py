"""The VAE stage: fine patterns without held-out concepts, growing a latent, and what the bundled VAE promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.core.models.tiny import PARTS, config, tiny_weights_path
from contextual_inversion.core.models.tiny.build import build_vae
from contextual_inversion.core.models.tiny.load import load_part
from contextual_inversion.core.world.concepts import RESERVED, TEN
from contextual_inversion.core.world.render import concept_images
from contextual_inversion.pretraining import vae as stage
from contextual_inversion.pretraining.forms import Form
from contextual_inversion.pretraining.patterns import DRAWN, look, pattern_mask, pattern_picture
from contextual_inversion.pretraining.pictures import pictures
from contextual_inversion.pretraining.processes import Processes
from contextual_inversion.pretraining.vae_report import counted_spots, summary

CPU = torch.device("cpu")
WIDER = config.LATENT_CHANNELS + 5


def test_patterns_never_show_a_held_out_pair() -> None:
    rng = np.random.default_rng(0)
    looks = {look(rng) for _ in range(3000)}
    assert len(looks) > 400
    assert not any((shape, a, b) in RESERVED or (shape, b, a) in RESERVED for shape, a, b in looks)


def test_a_pattern_picture_is_the_same_every_time() -> None:
    (image, mask), (again, _) = (pattern_picture(np.random.default_rng([5, 3])) for _ in range(2))
    assert np.array_equal(image, again)
    assert image.shape == (128, 128, 3)
    assert 0.05 < mask.mean() < 0.95


@pytest.mark.parametrize("name", DRAWN)
def test_patterns_repeat_with_period_one(name: str) -> None:
    v, u = np.mgrid[:2:40j, 0.01:2:40j]
    if name != "rings":  # they repeat outwards, not sideways
        assert np.array_equal(DRAWN[name](u, v, 0.5), DRAWN[name](u + 3, v + 2, 0.5))
    assert 0.1 < DRAWN[name](u, v, 0.5).mean() < 0.7


def test_pattern_masks_cover_a_part() -> None:
    covered = [np.asarray(pattern_mask(np.random.default_rng(i))).mean() / 255 for i in range(4)]
    assert all(0.05 < share < 0.75 for share in covered)


def test_a_grown_latent_changes_nothing_while_unused() -> None:
    narrow, wide = build_vae(), build_vae({**config.VAE, "latent_channels": WIDER})
    stage.inherit_vae(wide, narrow.state_dict())
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z, grown = narrow.encode(x).latents, wide.encode(x).latents
        assert torch.equal(grown[:, : config.LATENT_CHANNELS], z)
        assert grown[:, config.LATENT_CHANNELS :].std() > 0
        grown[:, config.LATENT_CHANNELS :] = 0
        assert torch.allclose(wide.decode(grown).sample, narrow.decode(z).sample, atol=1e-6)


def test_only_a_wider_latent_inherits() -> None:
    narrow, wide = build_vae(), build_vae({**config.VAE, "latent_channels": WIDER})
    with pytest.raises(ValueError, match="does not fit"):
        stage.inherit_vae(narrow, wide.state_dict())
    thin = build_vae({**config.VAE, "encoder_block_out_channels": (16,) * 4})
    with pytest.raises(ValueError, match="does not fit"):
        stage.inherit_vae(thin, narrow.state_dict())


def test_errors_weigh_three_times_on_objects() -> None:
    x, decoded = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    nothing, everything = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert stage.reconstruction_loss(x, x, everything) == 0
    plain = stage.reconstruction_loss(decoded, x, nothing)
    assert torch.allclose(stage.reconstruction_loss(decoded, x, everything), 3 * plain)
    # A constant error has no gradients, so only its own square counts.
    assert torch.allclose(stage.reconstruction_loss(x + 0.5, x, nothing), torch.tensor(stage.ERROR_WEIGHT * 0.25))


def test_calm_blocks_are_the_identity() -> None:
    vae = build_vae()
    stage.calm(vae)
    blocks = [m for m in vae.modules() if type(m).__name__ == "AutoencoderTinyBlock"]
    x = torch.rand(1, 32, 8, 8)
    assert len(blocks) == 20
    assert all(torch.equal(block(x), x) for block in blocks)


def test_an_interrupted_stage_ends_where_a_whole_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**config.VAE, "encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    monkeypatch.setattr(stage, "psnr", lambda *_: {"psnr": 0.0})
    weights = []
    for name, lengths in (("whole", (4,)), ("parts", (2, 4))):
        form = Form(tmp_path / name, {"vae": small})
        for steps in lengths:
            # The rate depends on a stage's length, so the interrupted one has the same and is stopped by hand.
            plan = stage.Plan
            monkeypatch.setattr(stage, "Plan", lambda n, plan=plan, **rest: plan(n, **{**rest, "decay": 0.0}))
            stage.train_vae(tmp_path / name, Processes("cpu"), steps=steps, batch=4, scenes=4, form=form, start="fresh")
            monkeypatch.setattr(stage, "Plan", plan)
        state = torch.load(tmp_path / name / "vae.pt", weights_only=True)
        weights.append(state["modules"]["vae"])
        assert state["step"] == 4
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    return load_part("vae")


def test_the_vae_is_small_and_frozen(vae: torch.nn.Module) -> None:
    size = tiny_weights_path("vae").stat().st_size
    others = sum(tiny_weights_path(part).stat().st_size for part in (*PARTS, "judge") if part != "vae")
    assert size <= 4_000_000
    assert size + others <= 24_000_000
    assert not any(p.requires_grad for p in vae.parameters())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Held-out scenes and concepts with their masks."""
    _, images, masks = pictures(tmp_path_factory.mktemp("pictures"), "test", 32, workers=1)
    concepts = [concept_images(name, 2) for name in TEN]
    subjects = np.stack([mask.subject for _, shown, _ in concepts for mask in shown])
    return {"scenes": (images, masks), "concepts": (np.concatenate([image for image, _, _ in concepts]), subjects)}


@pytest.mark.parametrize("kind", ["scenes", "concepts"])
def test_the_vae_reaches_the_goal_on_objects(vae: torch.nn.Module, drawn: dict, kind: str) -> None:
    assert stage.psnr(vae, *drawn[kind], CPU)["object_psnr"] >= 28


def test_the_vae_keeps_every_spot_of_the_goblet(vae: torch.nn.Module) -> None:
    counted = summary(counted_spots(vae, "goblet"))
    assert counted["kept"] == counted["pictures"] == 16
    assert counted["number"] == counted["found"] == counted["named"] > 0
    assert counted["added"] == 0


def test_the_vae_latents_have_unit_variance(vae: torch.nn.Module, tmp_path: Path) -> None:
    _, images, _ = pictures(tmp_path, "test", 24, workers=1)
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = vae.encode(x).latents
    assert z.shape[1:] == (config.LATENT_CHANNELS, 16, 16)
    assert 0.8 < z.std() < 1.2
