"""Laws of the recorder: the maps are softmax(QK / sqrt d), nothing is changed, and memory does not grow with steps."""

import numpy as np
import pytest
import torch
from rounding import equal_but_for_rounding

from contextual_inversion.core.inspection.attention.atlas import atlas, description
from contextual_inversion.core.inspection.attention.heat_pictures import mask_of
from contextual_inversion.core.inspection.attention.layer_groups import MOST, layer_plan
from contextual_inversion.core.inspection.attention.maps import (
    AttentionMaps,
    LayerGroup,
    normalised,
    stretched,
    word_maps,
)
from contextual_inversion.core.inspection.attention.recorder import (
    AttentionRecorder,
    folded,
    head_means,
    map_size,
    pooled,
)
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import AttentionObserver, ImageSize
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.prompts.words import PromptWord

LAYERS = ["down_blocks.0.attentions.0.transformer_blocks.0.attn2", "mid_block.attentions.0.transformer_blocks.0.attn2"]


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return DiffusersModel.from_tiny(load_tiny())


def softmax_by_hand(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    scores = np.einsum("bhnd,bhld->bhnl", query, key) / np.sqrt(query.shape[-1])
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_maps_are_the_softmax_by_hand_averaged_over_heads_and_passes() -> None:
    recorder = AttentionRecorder(bins=2)
    recorder.begin(LAYERS)
    passes = [(normal(i, 4, 3, 6, 5), normal(10 + i, 4, 3, 7, 5)) for i in range(3)]
    for index, (query, key) in enumerate(passes):
        watch = recorder.watch(index / 3, {"one": [slice(2, 4)], "two": [slice(1, 2)]}, (2, 3))
        assert isinstance(watch, AttentionObserver)
        watch.observe(1, query, key)
    expected = [softmax_by_hand(q.double().numpy(), k.double().numpy()).mean(1) for q, k in passes]
    maps = recorder.maps(0)
    assert maps.bins == ((0.0, 0.5), (0.5, 1.0))
    assert maps.weights == (2, 1)
    for values, theirs in zip(maps.values[0], [(expected[0] + expected[1]) / 2, expected[2]], strict=True):
        flat = values.flatten(-2).transpose(1, 2)
        np.testing.assert_allclose(flat.numpy(), theirs[2:4], atol=1e-6)
        torch.testing.assert_close(values.sum(1), torch.ones(2, 2, 3))
    assert recorder.conditionings == 2
    assert recorder.maps(1).images == 1
    # the mean over the whole sampling weighs passes and not stretches
    whole = word_maps(maps, [[0, 1]])
    mean = np.mean([e[2:4, :, :2].mean(-1) for e in expected], axis=0)
    np.testing.assert_allclose(whole[:, 0].flatten(1).numpy(), mean, atol=1e-6)


def test_a_batch_too_large_to_hold_is_taken_picture_by_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = normal(0, 3, 2, 4, 5), normal(1, 3, 2, 7, 5)
    at_once = head_means(query, key)
    monkeypatch.setattr("contextual_inversion.core.inspection.attention.recorder.CHUNK", 10)
    torch.testing.assert_close(head_means(query, key), at_once)


def test_pooling_and_folding_keep_probabilities() -> None:
    maps = normal(0, 2, 6, 10, 7).exp()
    maps = maps / maps.sum(1, keepdim=True)
    small = pooled(maps, 4)
    assert small.shape == (2, 6, 4, 3)
    torch.testing.assert_close(small.sum(1), torch.ones(2, 4, 3))
    assert pooled(maps, 10) is maps
    torch.testing.assert_close(folded(maps, 3, axis=1), maps[:, :3] + maps[:, 3:])
    with pytest.raises(ValueError, match="no repetition"):
        folded(maps, 4, axis=1)


@pytest.mark.parametrize(("cells", "size"), [(16 * 24, (16, 24)), (8 * 12, (8, 12)), (4 * 6, (4, 6)), (2 * 3, (2, 3))])
def test_the_size_of_a_layer_follows_from_the_latents(cells: int, size: tuple[int, int]) -> None:
    assert map_size(cells, 16, 24) == size
    assert map_size(5 * 8, 9, 15) == (5, 8)  # odd sides are rounded up
    with pytest.raises(ValueError, match="no level"):
        map_size(cells + 1, 16, 24)


def test_many_layers_are_kept_block_by_block() -> None:
    few = layer_plan([f"up_blocks.{i}.attentions.0.transformer_blocks.0.attn2" for i in range(MOST)])
    assert few.group_of == tuple(range(MOST))
    sdxl = [
        f"down_blocks.{b}.attentions.{a}.transformer_blocks.{t}.attn2"
        for b in (1, 2)
        for a in (0, 1)
        for t in range(10)
    ]
    plan = layer_plan(sdxl)
    assert len(plan.names) == 4
    assert [len(names) for names in plan.names] == [10] * 4
    assert sorted(sum(plan.names, ())) == sorted(sdxl)
    with pytest.raises(ValueError, match="which part"):
        layer_plan(["elsewhere.attn2"])


def picture(model: DiffusersModel, steps: int, probe=None, height: int = 12, width: int = 16) -> torch.Tensor:
    size = ImageSize(8 * height, 8 * width)
    with model.session(), torch.no_grad():
        positive, negative = (model.conditioning(encode_prompts(model, [t]), size) for t in ("a red cat", ""))
        return sample(
            model, positive, negative, shape=(2, model.latent_channels, height, width), steps=steps, seed=3, probe=probe
        )


def test_sampling_is_bit_equal_and_its_maps_are_those_of_the_probe_in_training(model: DiffusersModel) -> None:
    recorder = AttentionRecorder(bins=1)
    plain = picture(model, 1)
    watched = picture(model, 1, recorder.sampling(model.cross_attention_layers(), (12, 16)))
    assert torch.equal(plain, watched)
    seen: list[torch.Tensor] = []
    picture(model, 1, lambda step, steps, rows: lambda layer, p: seen.append(p[rows].mean(1)))
    maps = recorder.maps()
    assert [g.layers[0] for g in maps.groups] == list(model.cross_attention_layers())
    for values, expected in zip(maps.values, seen, strict=True):
        equal_but_for_rounding(values[0].flatten(-2).transpose(1, 2), expected)
        torch.testing.assert_close(values.sum(2), torch.ones_like(values.sum(2)))


def numbers(recorder: AttentionRecorder) -> int:
    return sum(sums.total.numel() for groups in recorder._sums.values() for sums in groups.values())


def test_memory_does_not_grow_with_steps(model: DiffusersModel) -> None:
    kept = []
    for steps in (1, 9):
        recorder = AttentionRecorder(bins=4)
        picture(model, steps, recorder.sampling(model.cross_attention_layers(), (12, 16)))
        kept.append(numbers(recorder))
        assert sum(recorder.maps().weights) == steps
    assert kept[0] == kept[1] > 0


def test_nothing_is_left_behind_by_an_error(model: DiffusersModel) -> None:
    class Broken:
        def observe(self, layer, query, key, scale=None, size=None) -> None:
            raise RuntimeError("broken observer")

    def hooks() -> int:
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.unet.modules())

    before, plain = hooks(), picture(model, 2)
    with pytest.raises(RuntimeError, match="broken observer"):
        picture(model, 2, lambda *_: Broken())
    assert hooks() == before
    assert torch.equal(picture(model, 2), plain)


def test_pictures_that_change_size_end_the_recording_and_say_so() -> None:
    recorder = AttentionRecorder(bins=1)
    recorder.begin(LAYERS)
    recorder.watch(0, {"a": [slice(None)]}, (2, 3)).observe(0, normal(0, 1, 1, 6, 4), normal(1, 1, 1, 7, 4))
    recorder.watch(0, {"a": [slice(None)]}, (2, 4)).observe(0, normal(0, 1, 1, 8, 4), normal(1, 1, 1, 7, 4))
    with pytest.raises(ValueError, match="changed their size"):
        recorder.maps()


def test_asking_for_what_was_not_recorded() -> None:
    recorder = AttentionRecorder()
    with pytest.raises(ValueError, match="no attention was recorded"):
        recorder.maps()
    with pytest.raises(RuntimeError, match="begin"):
        recorder.watch(0, {}, (2, 3))
    maps = example()
    with pytest.raises(ValueError, match="conditionings"):
        filled().maps(1)
    with pytest.raises(ValueError, match="no cross-attention"):
        maps.layers_of("up")
    with pytest.raises(ValueError, match="no step"):
        word_maps(maps, [[0]], steps=(0.5, 0.5))
    with pytest.raises(ValueError, match="prompt that was sampled"):
        maps.for_prompt(154)


def filled() -> AttentionRecorder:
    recorder = AttentionRecorder(bins=1)
    recorder.begin(LAYERS)
    recorder.watch(0, {"a": [slice(None)]}, (2, 3)).observe(0, normal(0, 1, 1, 6, 4), normal(1, 1, 1, 7, 4))
    return recorder


def example() -> AttentionMaps:
    groups = (
        LayerGroup("4 x 6, down", "down", ("a", "b"), 0.0, 4, 6),
        LayerGroup("2 x 3, middle", "middle", ("c",), 1.0, 2, 3),
    )
    values = (normal(0, 2, 3, 7, 4, 6).abs(), normal(1, 2, 3, 7, 2, 3).abs())
    return AttentionMaps(groups, ((0.0, 0.5), (0.5, 1.0)), (3, 1), values)


def test_a_word_is_the_mean_of_tokens_layers_and_steps() -> None:
    maps = example()
    fine, coarse = ((0.75 * v[0] + 0.25 * v[1])[:, [2, 5]].mean(1, keepdim=True) for v in maps.values)
    coarse = torch.nn.functional.interpolate(coarse, size=(4, 6), mode="bilinear")
    torch.testing.assert_close(word_maps(maps, [(2, 5)]), (2 * fine + coarse) / 3)
    torch.testing.assert_close(word_maps(maps, [(1,)], layers=[0], steps=(0.5, 1.0))[:, 0], maps.values[0][1, :, 1])
    both = word_maps(maps, [(0,), (1, 2)], size=(8, 12))
    assert both.shape == (3, 2, 8, 12)
    assert torch.equal(normalised(both).amax((2, 3)), torch.ones(3, 2))
    common = normalised(both, in_common=True)
    assert torch.equal(common.amax((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(common[:, 0] / common[:, 1], both[:, 0] / both[:, 1])
    assert maps.layers_of(side=16) == [0]
    assert maps.layers_of(side=3) == [0], "not the middle alone"
    assert maps.layers_of("middle", side=16) == [1]
    assert maps.layers_of("middle") == [1]


def test_a_mask_lies_between_the_least_and_the_most_of_a_map() -> None:
    maps = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    least, most = maps.numpy().min((2, 3), keepdims=True), maps.numpy().max((2, 3), keepdims=True)
    expected = torch.from_numpy((maps.numpy() - least) / (most - least))
    torch.testing.assert_close(stretched(maps), expected)
    shared = stretched(maps.double() + 0.5)
    torch.testing.assert_close(shared, stretched(maps.double()))  # what all places share says nothing
    assert torch.equal(stretched(torch.full((1, 1, 3, 3), 0.7)), torch.zeros(1, 1, 3, 3))
    background = torch.tensor([[[[0.8, 0.9], [0.7, 1.0]]]])
    assert mask_of(normalised(background), 0.4).mean() == 1
    assert mask_of(stretched(background), 0.4).mean() == 0.5


@pytest.mark.parametrize("limit", [2**24, 200])
def test_the_atlas_holds_every_map(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("contextual_inversion.core.inspection.attention.atlas.MOST_PIXELS", limit)
    monkeypatch.setattr("contextual_inversion.core.inspection.attention.atlas.SMALLEST", 1)
    maps, words = example(), [PromptWord("one", "word", (1,)), PromptWord("two", "word", (2, 3))]
    sheet = atlas(maps, words)
    told = description(maps, words, sheet, "one two", [0])
    assert [group["size"] for group in told["groups"]] == ["4 x 6", "2 x 3"]
    assert told["size"] == "4 x 6"
    assert description(maps, words, sheet, "one two", [0, 1])["size"] is None
    pixels, number = sheet.pixels.numpy() / 255, 0
    if limit == 200:
        assert max(sheet.height, sheet.width) < 6
    for image in range(3):
        for b in range(2):
            for group, values in enumerate(maps.values):
                for word in words:
                    top, left = (number // sheet.columns) * sheet.height, (number % sheet.columns) * sheet.width
                    height, width = told["groups"][group]["height"], told["groups"][group]["width"]
                    found = pixels[top : top + height, left : left + width] * sheet.scale[number]
                    expected = values[b, image, list(word.positions)].mean(0)
                    expected = pooled(expected[None, None], max(sheet.height, sheet.width))[0, 0].numpy()
                    np.testing.assert_allclose(found, expected, atol=sheet.scale[number] / 500)
                    number += 1
    assert number == len(sheet.scale) == len(told["scale"])
