"""The bundled tiny Stable Diffusion: tokenizers agree, the sparse table comes back, the parts fit together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import Conditioning
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.tiny import PARTS, config, load_tiny, tiny_tokenizer, tiny_weights_path
from contextual_inversion.core.models.tiny.token_table import IDS_KEY, ROWS_KEY, pack, unpack, untrained_rows

TEXTS = (
    "a photo of a red ball on the grass",
    "Hello,   WORLD! it's naïve 123 ça é 漢字 🙂",
    "a two-tone purple and orange cat, pixel art",
    "",
)


def comfy_vocabulary() -> Path:
    """ComfyUI's copy of the CLIP vocabulary; skips where there is no ComfyUI."""
    roots = [os.environ.get("COMFYUI_PATH"), Path.home() / "comfy" / "ComfyUI"]
    for root in filter(None, roots):
        if (folder := Path(root) / "comfy" / "sd1_tokenizer").is_dir():
            return folder
    pytest.skip("no ComfyUI on this machine")


@pytest.fixture(scope="module")
def model():
    return load_tiny()


def test_vocabulary_is_the_stock_one() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenizer) == config.VOCABULARY
    assert tokenizer("").input_ids == [config.BOS, config.EOS]
    assert tokenizer.pad_token_id == config.EOS
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_both_sources_of_the_vocabulary_give_identical_ids() -> None:
    ours, comfys = tiny_tokenizer(), tiny_tokenizer(str(comfy_vocabulary()))
    assert ours.get_vocab() == comfys.get_vocab()
    for text in TEXTS:
        assert ours(text).input_ids == comfys(text).input_ids


def test_sparse_table_round_trip() -> None:
    ids = torch.tensor([5, 320, 49407])
    rows = torch.randn(3, config.WIDTH, generator=torch.Generator().manual_seed(0)).half().float()
    table = unpack(pack(ids, rows))
    assert table.shape == (config.VOCABULARY, config.WIDTH)
    assert torch.equal(table[ids], rows)
    others = torch.ones(config.VOCABULARY, dtype=torch.bool)
    others[ids] = False
    assert torch.equal(table[others], untrained_rows(float(rows.square().mean().sqrt()))[others])
    assert table[others].std() == pytest.approx(float(rows.square().mean().sqrt()), rel=0.01)


def test_a_table_that_lies_is_refused() -> None:
    good = pack(torch.tensor([1, 2]), torch.zeros(2, config.WIDTH))
    with pytest.raises(ValueError, match="sparse token table"):
        unpack({**good, IDS_KEY: torch.tensor([1, config.VOCABULARY])})
    with pytest.raises(ValueError, match="sparse token table"):
        unpack({**good, ROWS_KEY: torch.zeros(2, 7)})
    with pytest.raises(KeyError):
        unpack({IDS_KEY: good[IDS_KEY]})


def test_weights_are_there_frozen_and_small(model) -> None:
    sizes = [tiny_weights_path(part).stat().st_size for part in (*PARTS, "judge")]
    assert sum(sizes) <= 16_000_000
    for module in (model.unet, model.text_encoder, model.vae, model.image_encoder):
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training


def test_loading_twice_gives_the_same_model(model) -> None:
    again = load_tiny()
    assert again.fingerprint == model.fingerprint
    for part in PARTS:
        one, two = getattr(model, part).state_dict(), getattr(again, part).state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_parts_fit_together(model) -> None:
    ids = model.tokenizer(["a red cat", ""], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (2, config.POSITIONS)
    context = model.text_encoder(input_ids=ids).last_hidden_state
    assert context.shape == (2, config.POSITIONS, config.WIDTH)

    positive, negative = (Conditioning(part) for part in context.split(1))
    protocol, shape = DiffusersModel.from_tiny(model), (1, config.LATENT_CHANNELS, *[config.LATENT_SIZE] * 2)
    z, again = (sample(protocol, positive, negative, shape=shape, seed=0, steps=2) for _ in range(2))
    assert torch.equal(z, again)
    assert torch.isfinite(z).all()
    assert model.vae.decode(z).sample.shape == (1, 3, config.IMAGE_SIZE, config.IMAGE_SIZE)


def test_latents_have_unit_scale(model) -> None:
    from contextual_inversion.core.inspection.world.report import questions
    from contextual_inversion.core.world.render import render

    images = [torch.from_numpy(render(q.scene)[0].copy()) for q in questions(24, seed=3)]
    x = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert 0.8 < model.vae.encode(x).latents.std() < 1.2


def test_schedule_is_diffusers_own(model) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(**model.scheduler_config).alphas_cumprod
    ours = DiffusersModel.from_tiny(model).schedule.alpha_bar.float()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
