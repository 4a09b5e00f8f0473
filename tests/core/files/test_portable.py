"""The portable form of a LoRA is the same change of every layer, and one that no program reads by half."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.files import ConceptFileError
from contextual_inversion.core.files.portable import not_everywhere, portable_lora

UNET, TEXT = "lora_unet_mid_attn2_to_k", "lora_te_text_model_encoder_layers_0_self_attn_{}_proj"
STEMS = [UNET, "lora_unet_conv", *(TEXT.format(part) for part in "qkv"), "lora_te2_text_model_encoder_layers_1_mlp_fc1"]


def change(parts, stem: str) -> torch.Tensor:
    """What a LoRA adds to a weight, float64, by its definition: alpha / r times up @ down, or the difference."""
    if f"{stem}.diff" in parts:
        return parts[f"{stem}.diff"].double()
    down, up = parts[f"{stem}.lora_down.weight"].double(), parts[f"{stem}.lora_up.weight"].double()
    scale = float(parts[f"{stem}.alpha"]) / len(down) if f"{stem}.alpha" in parts else 1.0
    return scale * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


def random_layer(stem: str, rank: int, alpha: float | None, full: bool, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kernel = (3, 3) if "conv" in stem else ()
    if full:
        return {f"{stem}.diff": torch.randn(6, 5, *kernel, generator=generator)}
    parts = {f"{stem}.lora_down.weight": torch.randn(rank, 5, *kernel, generator=generator)}
    parts[f"{stem}.lora_up.weight"] = torch.randn(6, rank, *(1 for _ in kernel), generator=generator)
    return parts | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)})


layers = st.tuples(st.integers(1, 4), st.one_of(st.none(), st.floats(0.25, 8)), st.booleans(), st.integers(0, 9))


@given(st.dictionaries(st.sampled_from(STEMS), layers, min_size=1))
def test_every_layer_changes_as_it_did_with_one_rank_and_no_scale(given_layers):
    lora = {key: value for stem, how in given_layers.items() for key, value in random_layer(stem, *how).items()}
    kept = {key: value.clone() for key, value in lora.items()}
    portable = portable_lora(lora)
    for stem in given_layers:
        assert torch.allclose(change(portable, stem), change(lora, stem), atol=1e-5)
    for part in ("lora_unet_", "lora_te_", "lora_te2_"):
        ranks = {len(value) for key, value in portable.items() if key.startswith(part) and "down" in key}
        alphas = {float(value) for key, value in portable.items() if key.startswith(part) and key.endswith("alpha")}
        assert len(ranks) <= 1
        assert ranks == alphas
    added = {key.partition(".")[0] for key in portable} - set(given_layers)
    assert added <= {TEXT.format("out")}
    assert all(not change(portable, stem).any() for stem in added)
    assert bool(added) == any(TEXT.format(part) in given_layers for part in "qkv")
    assert not_everywhere(portable) is None
    assert all(torch.equal(kept[key], value) for key, value in lora.items())


NOT = {
    "a norm": {"text_encoders.clip_l.transformer.text_model.final_layer_norm.diff": (4,)},
    "a norm of the UNet": {"lora_unet_mid_norm1.diff": (4,)},
    "a bias": {f"{UNET}.diff": (4, 4), f"{UNET}.diff_b": (4,)},
    "DoRA": {f"{UNET}.lora_down.weight": (2, 4), f"{UNET}.lora_up.weight": (4, 2), f"{UNET}.dora_scale": (1, 4)},
    "LoHa": {f"{UNET}.hada_w1_a": (4, 2)},
    "another spelling": {"unet.mid.attn2.to_k.lora.down.weight": (2, 4), "unet.mid.attn2.to_k.lora.up.weight": (4, 2)},
    "half a layer": {f"{UNET}.lora_down.weight": (2, 4)},
    "an alpha alone": {f"{UNET}.alpha": ()},
    "two alphas": {f"{UNET}.lora_down.weight": (2, 4), f"{UNET}.lora_up.weight": (4, 2), f"{UNET}.alpha": (2,)},
    "ranks that differ": {f"{UNET}.lora_down.weight": (2, 4), f"{UNET}.lora_up.weight": (4, 3)},
    "a flat one": {f"{UNET}.lora_down.weight": (2,), f"{UNET}.lora_up.weight": (4,)},
}


@pytest.mark.parametrize("shapes", NOT.values(), ids=NOT)
def test_what_other_programs_would_leave_out_is_refused_in_words(shapes):
    lora = {key: torch.ones(shape) for key, shape in shapes.items()}
    with pytest.raises(ConceptFileError) as error:
        portable_lora(lora)
    assert len(str(error.value)) < 400
    assert not_everywhere(lora) == str(error.value)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (random_layer(UNET, 2, 2.0, False, 0), None),
        (random_layer(UNET, 2, None, False, 0), None),
        (random_layer(UNET, 2, 1.0, False, 0), "different scales or ranks"),
        (random_layer(UNET, 2, 2.0, False, 0) | random_layer("lora_unet_x", 3, 3.0, False, 1), "scales or ranks"),
        (random_layer(UNET, 1, None, True, 0), "full differences"),
        (random_layer(TEXT.format("q"), 2, 2.0, False, 0), "without out_proj"),
    ],
)
def test_a_lora_says_why_not_everyone_reads_it(parts, why):
    found = not_everywhere(parts)
    assert found is None if why is None else why in found
