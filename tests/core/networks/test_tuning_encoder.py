"""The tuning-encoder's laws: untrained it changes nothing, its words are as long as words, pictures do not mix."""

import pytest
import torch
from rounding import equal_but_for_rounding
from safetensors.torch import load_file, save_file

from contextual_inversion.core.files.errors import ConceptFileError
from contextual_inversion.core.files.tuning_encoder import load_tuning_encoder, save_tuning_encoder
from contextual_inversion.core.models.image_encoder import ImageFeatures
from contextual_inversion.core.networks.hypernetwork import targets_of
from contextual_inversion.core.networks.trunk import TrunkFeatures
from contextual_inversion.core.networks.tuning_encoder import PRESETS, Identity, Shape, TuningEncoder, initialise

MAPS = (64, 64, 64, 128, 128)
SIDES = (16, 16, 8, 8, 8)


def shape():
    """The bundled model's."""
    targets = {}
    for block, width in (("down_blocks.0", 64), ("down_blocks.1", 128), ("mid_block", 128)):
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                context = 128 if attention == "attn2" and part in ("to_k", "to_v") else width
                targets[f"{block}.attentions.0.transformer_blocks.0.{attention}.{part}"] = (context, width)
    return Shape(128, 3, MAPS, targets, {"clip_l": 128, "clip_g": 32}, PRESETS["tiny"])


IDENTITY = Identity("a model", "aaaa", {"clip_l": "bbbb", "clip_g": "eeee"}, "cccc")
NORMS = {"clip_l": 0.36, "clip_g": 5.0}


def encoder():
    made = TuningEncoder(IDENTITY, shape(), resolution=128, provenance={"steps": 3})
    return initialise(made, NORMS, torch.Generator().manual_seed(1))


def seen(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(count, *size, generator=generator)

    image = ImageFeatures(draw(3, 128), draw(128, 8, 8))
    return image, [draw(width, side, side) for width, side in zip(MAPS, SIDES, strict=True)]


def test_untrained_it_changes_nothing_and_its_words_are_as_long_as_words():
    network = encoder()
    found = network(network.look(*seen(32)))
    assert all(bool((b == 0).all()) and bool((a != 0).any()) for a, b in found.factors.values())
    for name, norm in NORMS.items():
        assert found.vectors[name].norm(dim=1).mean().item() == pytest.approx(norm, rel=0.15)


def test_every_matrix_has_factors_of_its_own_and_of_its_shape():
    network = encoder()
    with torch.no_grad():
        for head in network.hypernetwork.b_heads:
            head.weight.normal_(generator=torch.Generator().manual_seed(2))
    found = network(network.look(*seen()))
    assert list(found.factors) == list(network.shape.targets)
    for name, (a, b) in found.factors.items():
        assert (a.shape, b.shape) == ((3, network.shape.targets[name][0], 4), (3, 4, network.shape.targets[name][1]))
    alike = [b for name, (_, b) in found.factors.items() if network.shape.targets[name] == (128, 128)]
    assert len({tuple(one.flatten()[:4].tolist()) for one in alike}) == len(alike)


def test_pictures_of_a_batch_do_not_see_each_other():
    network = encoder()
    image, maps = seen()
    together = network(network.look(image, maps))
    for row in range(3):
        part = slice(row, row + 1)
        alone = network(network.look(ImageFeatures(image.vectors[part], image.grid[part]), [one[part] for one in maps]))
        equal_but_for_rounding(alone.vectors["clip_l"], together.vectors["clip_l"][part])
        for name, (a, _) in alone.factors.items():
            equal_but_for_rounding(a, together.factors[name][0][part])


def test_the_features_of_several_timesteps_are_averaged_not_the_products():
    network = encoder()
    first, second = (network.look(*seen(seed=seed)) for seed in (0, 1))
    mean = TrunkFeatures.mean([first, second])
    torch.testing.assert_close(mean.pooled, (first.pooled + second.pooled) / 2)
    torch.testing.assert_close(mean.tokens, (first.tokens + second.tokens) / 2)
    assert torch.equal(TrunkFeatures.mean([first]).pooled, first.pooled)


def test_everything_it_looks_at_reaches_the_prediction():
    network = encoder()
    image, maps = seen(1)
    inputs = [image.vectors, image.grid, *maps]
    for value in inputs:
        value.requires_grad_()
    found = network(network.look(image, maps))
    total = found.vectors["clip_l"].sum() + sum(a.square().sum() for a, _ in found.factors.values())
    assert all(bool((gradient != 0).any()) for gradient in torch.autograd.grad(total, inputs))


def test_the_wrong_number_of_maps_is_an_error():
    image, maps = seen()
    with pytest.raises(ValueError, match="5 UNet maps, got 4"):
        encoder().look(image, maps[:4])


def test_the_tiny_preset_is_small_and_the_large_one_has_the_papers_sizes():
    assert encoder().numbers < 1_500_000
    assert (PRESETS["sd"].grid, PRESETS["sd"].stages[-1], PRESETS["sd"].feature, PRESETS["sd"].rank) == (
        16,
        1024,
        1024,
        4,
    )


def test_only_attention_projections_are_targets():
    layers = {
        name: torch.nn.Linear(4, 6)
        for name in ("b.attn2.to_q", "a.attn1.to_out.0", "a.ff.net.2", "time_embedding.linear_1", "a.proj_in")
    }
    assert targets_of(layers) == {"a.attn1.to_out.0": (4, 6), "b.attn2.to_q": (4, 6)}
    with pytest.raises(ValueError, match="no attention"):
        targets_of({"a.ff.net.2": torch.nn.Linear(4, 6)})


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_holds_everything(tmp_path, dtype):
    network = encoder()
    network.negatives = {"clip_l": torch.randn(5, 128)}
    network.known = {"clip_l": torch.tensor([3, 7])}
    again = load_tuning_encoder(save_tuning_encoder(network, tmp_path, "mine", dtype=dtype))
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(dtype).float())
    assert torch.equal(again.negatives["clip_l"], network.negatives["clip_l"].to(dtype).float())
    assert torch.equal(again.known["clip_l"], network.known["clip_l"])
    for fact in ("identity", "shape", "resolution", "timesteps", "seed", "provenance"):
        assert getattr(again, fact) == getattr(network, fact), fact
    assert not any(value.requires_grad for value in again.parameters())


def test_a_file_for_another_model_is_refused_and_both_are_named():
    IDENTITY.require(Identity("the same by another name", "aaaa", {"clip_l": "bbbb", "clip_g": "eeee"}, "cccc"))
    other = Identity("another", "dddd", {"clip_l": "bbbb", "clip_g": "eeee"}, "cccc")
    with pytest.raises(ValueError, match=r"a model \(UNet aaaa.*another \(UNet dddd.*: the UNet differs"):
        IDENTITY.require(other)
    with pytest.raises(ValueError, match="the text encoder and the image encoder differ"):
        IDENTITY.require(Identity("another", "aaaa", {"clip_l": "x"}, "y"))


def test_damaged_files_are_errors(tmp_path):
    path = save_tuning_encoder(encoder(), tmp_path, "mine")
    tensors = load_file(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({k: v for k, v in tensors.items() if "queries" not in k}, tmp_path / "less.safetensors", metadata)
    with pytest.raises(ConceptFileError, match=r"less\.safetensors is a damaged"):
        load_tuning_encoder(tmp_path / "less.safetensors")
    save_file(tensors, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(ConceptFileError, match="no tuning-encoder"):
        load_tuning_encoder(tmp_path / "other.safetensors")
