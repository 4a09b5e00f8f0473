"""The recorder through ComfyUI's sampling: the diffusers adapter's maps, beside any patch, and no trace left."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rounding import equal_but_for_rounding

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
from contextual_inversion.core.models.attention import attention_probabilities, merge_heads, split_heads
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts

TOLERANCE = 1e-4
HEIGHT, WIDTH, BATCH = 16, 24, 2


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def pair(request: pytest.FixtureRequest, comfyui: Any) -> Iterator[tuple[DiffusersModel, Any]]:
    here = str(Path(__file__).parent)
    sys.path.append(here)  # pytest's importlib mode leaves a test's own folder out of the path
    try:
        import random_models

        yield random_models.build(request.param)
    finally:
        sys.path.remove(here)


@pytest.fixture(scope="module")
def sockets(comfyui: Any) -> Any:
    from types import SimpleNamespace

    from contextual_inversion.nodes.comfy import demo_model

    with torch.inference_mode():
        return SimpleNamespace(model=demo_model.load_model_patcher(), clip=demo_model.load_clip())


def channels(model: Any) -> int:
    return model.model.latent_format.latent_channels


def latents(model: Any) -> torch.Tensor:
    return torch.randn(BATCH, channels(model), HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))


def encoded(clip: Any, prompt: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def sampled(
    model: Any, clip: Any, positive: Any = None, negative: str = "blurry", steps: int = 2, cfg: float = 4.0
) -> torch.Tensor:
    import comfy.sample

    positive = encoded(clip, "a photo of a red cat on the grass") if positive is None else positive
    empty = torch.zeros(BATCH, channels(model), HEIGHT, WIDTH)
    noise = comfy.sample.prepare_noise(empty, 7)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "normal", positive, encoded(clip, negative), empty, disable_pbar=True
        ).clone()


def test_maps_are_those_of_the_diffusers_adapter(pair: tuple[DiffusersModel, Any]) -> None:
    from contextual_inversion.nodes.attention import attend

    model, sockets = pair
    prompt, timestep, seed = "a photo of a red cat", 500, 11
    ours = AttentionRecorder()
    with torch.inference_mode():
        attend(sockets.model, sockets.clip, latents(sockets.model), prompt, [timestep], seed, ours)
    theirs = AttentionRecorder()
    theirs.begin(model.cross_attention_layers())
    with model.session(), torch.no_grad():
        size = ImageSize(8 * HEIGHT, 8 * WIDTH)
        alpha_bar = float(model.schedule.alpha_bar[timestep])
        clean = sockets.model.model.process_latent_in(latents(sockets.model))
        noise = torch.randn(clean.shape, generator=torch.manual_seed(seed))
        noisy = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise
        given = model.conditioning(encode_prompts(model, [prompt]), size).expand(BATCH)
        watch = theirs.watch(0, {"prompt": [slice(None)]}, (HEIGHT, WIDTH))
        model.predict(noisy, torch.full((BATCH,), timestep), given, watch)
    ours, theirs = ours.maps(), theirs.maps()
    assert ours.groups == theirs.groups
    assert len(ours.groups) == len(model.cross_attention_layers()) > 2
    for group, one, other in zip(ours.groups, ours.values, theirs.values, strict=True):
        difference = float((one - other).abs().max() / other.abs().max())
        print(f"{group.label}: {difference:.1e}")
        assert difference < TOLERANCE
        torch.testing.assert_close(one.sum(2), torch.ones_like(one.sum(2)))


def test_sampling_is_bit_equal_in_every_family(pair: tuple[DiffusersModel, Any]) -> None:
    from contextual_inversion.nodes.comfy.attention_recording import recording

    _, sockets = pair
    recorder = AttentionRecorder()
    plain = sampled(sockets.model, sockets.clip)
    assert torch.equal(sampled(recording(sockets.model, recorder), sockets.clip), plain)
    assert recorder.finished
    assert recorder.maps().images == BATCH
    assert recorder.maps().weights == (1, 1)


# Beside other nodes' patches, on the demo model


def low_rank(model: Any) -> None:
    from comfy.weight_adapter import LoRAAdapter

    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    out, width = model.model_state_dict()[key].shape
    up, down = torch.ones(out, 2) * 0.1, torch.ones(2, width) * 0.1
    assert model.add_patches({key: LoRAAdapter(set(), (up, down, 2.0, None, None, None))})


def replaced(model: Any) -> None:
    def theirs(query: Any, key: Any, value: Any, options: Any) -> torch.Tensor:
        parts = [split_heads(x, options["n_heads"]) for x in (query, key, value)]
        return 1.1 * merge_heads(attention_probabilities(*parts[:2]) @ parts[2])

    model.set_model_attn2_replace(theirs, "input", 1)


def patched(model: Any) -> None:
    model.set_model_attn2_patch(lambda query, context, value, options: (query, 0.9 * context, value))
    model.set_model_attn2_output_patch(lambda out, options: 1.05 * out)


def another_back_end(model: Any) -> None:
    from comfy.ldm.modules.attention import attention_pytorch

    model.set_model_optimized_attention(lambda *args, **kw: 0.95 * attention_pytorch(*args, **kw))


def wrapped(model: Any) -> None:
    model.set_model_unet_function_wrapper(lambda run, given: 0.9 * run(given["input"], given["timestep"], **given["c"]))


PATCHES = [low_rank, replaced, patched, another_back_end, wrapped]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda one: one.__name__)
def test_other_patches_stay_in_force_before_and_after(sockets: Any, patch: Any) -> None:
    from contextual_inversion.nodes.comfy.attention_recording import recording

    theirs = sockets.model.clone()
    patch(theirs)
    expected = sampled(theirs, sockets.clip, steps=1)
    assert not torch.equal(expected, sampled(sockets.model, sockets.clip, steps=1))
    recorder, later = AttentionRecorder(), AttentionRecorder()
    after = recording(theirs, recorder)
    before = recording(sockets.model, later)
    patch(before)
    for model, used in ((after, recorder), (before, later)):
        assert torch.equal(sampled(model, sockets.clip, steps=1), expected)
        maps = used.maps()
        assert len(maps.groups) == 7
        for values in maps.values:
            torch.testing.assert_close(values.sum(2), torch.ones_like(values.sum(2)))
    for one, other in zip(recorder.maps().values, later.maps().values, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_is_left_behind_by_an_error(sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.attention_recording import recording

    plain, options = sampled(sockets.model, sockets.clip), copy.deepcopy(sockets.model.model_options)
    recorder = AttentionRecorder()
    model = recording(sockets.model, recorder)
    broken, calls = model.clone(), []

    def fails(out: torch.Tensor, options: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 9:  # in the second step
            raise RuntimeError("a broken patch")
        return out

    broken.set_model_attn2_output_patch(fails)
    with pytest.raises(RuntimeError, match="a broken patch"):
        sampled(broken, sockets.clip)
    assert not recorder.finished
    with pytest.raises(ValueError, match="no attention was recorded"):
        recorder.maps()
    assert sockets.model.model_options == options
    assert torch.equal(sampled(sockets.model, sockets.clip), plain)
    assert torch.equal(sampled(model, sockets.clip), plain)
    assert recorder.finished


def test_several_conditionings_are_kept_apart(sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.attention_recording import recording

    one, two = (encoded(sockets.clip, prompt) for prompt in ("a red cat", "a blue house on sand"))
    recorder, alone = AttentionRecorder(), AttentionRecorder()
    expected = sampled(sockets.model, sockets.clip, one + two, steps=1)
    assert torch.equal(sampled(recording(sockets.model, recorder), sockets.clip, one + two, steps=1), expected)
    assert recorder.conditionings == 2
    found = []
    for prompt in (one, two):
        sampled(recording(sockets.model, alone), sockets.clip, prompt, steps=1)
        found.append(alone.maps().values[0])
    kept = [recorder.maps(i).values[0] for i in range(2)]
    for expected, values in zip(found, kept, strict=True):
        equal_but_for_rounding(values, expected)
    assert not torch.allclose(*kept, atol=1e-3)


def test_a_context_repeated_for_a_long_negative_prompt_is_folded_back(sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.attention_recording import recording

    found = []
    for negative, cfg in (("blurry", 1.0), ("very " * 90 + "blurry", 4.0)):
        recorder = AttentionRecorder()
        sampled(recording(sockets.model, recorder), sockets.clip, negative=negative, steps=1, cfg=cfg)
        found.append(recorder.maps().for_prompt(77))
    for one, other in zip(found[0].values, found[1].values, strict=True):
        equal_but_for_rounding(one, other)


def test_two_prompts_one_behind_the_other_are_no_repetition(sockets: Any) -> None:
    """ConditioningConcat, or a long prompt of which a part is asked for: the maps of different tokens were added up."""
    from contextual_inversion.nodes.comfy.attention_recording import recording

    long = " ".join(f"cat {number}" for number in range(40))
    same = "very " * 150
    for prompt in (long, same):
        recorder = AttentionRecorder()
        sampled(recording(sockets.model, recorder), sockets.clip, encoded(sockets.clip, prompt), steps=1)
        maps = recorder.maps()
        assert maps.for_prompt(154) is maps
        if prompt == same:
            assert maps.for_prompt(77).tokens == 77, "its chunks are the same"
        else:
            with pytest.raises(ValueError, match="77 positions"):
                maps.for_prompt(77)


def test_of_two_paths_the_hard_one_is_recorded(sockets: Any) -> None:
    """Its first layer sees what the plain model sees with the real word; behind that the blend has come in."""
    from contextual_inversion.core.concept import Concept
    from contextual_inversion.nodes.comfy.attention_recording import recording
    from contextual_inversion.nodes.dual_path import DualPathNode, encoders_of

    width = encoders_of(sockets.clip)["clip_l"].width
    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    concept = Concept("thing", "cat", {"clip_l": vectors}, hard_token="cat")
    found = {}
    for alpha in (None, 0.0, 0.5):
        recorder = AttentionRecorder()
        model, positive = recording(sockets.model, recorder), encoded(sockets.clip, "a photo of a cat in the snow")
        if alpha is not None:
            given = (sockets.clip, concept, "a photo of a <thing> in the snow", alpha, "soft", 0.0, 1.0)
            model, positive = DualPathNode.execute(model, *given).args
        sampled(model, sockets.clip, positive, steps=1)
        found[alpha] = recorder.maps().for_prompt(77).values
    for plain, same in zip(found[None], found[0.0], strict=True):
        equal_but_for_rounding(same, plain)
    equal_but_for_rounding(found[0.5][0], found[None][0])
    assert not torch.allclose(found[0.5][-1], found[None][-1], atol=1e-4)


def test_training_on_the_recorded_model_is_no_sampling(sockets: Any) -> None:
    from contextual_inversion.nodes.comfy.attention_recording import recording
    from contextual_inversion.nodes.comfy.model import ComfyModel

    recorder = AttentionRecorder()
    model = ComfyModel(recording(sockets.model, recorder), sockets.clip, None)
    with torch.no_grad():
        given = model.conditioning(encode_prompts(model, ["a cat"]), ImageSize(128, 128)).expand(BATCH)
        model.predict(latents(sockets.model), torch.tensor([5, 500]), given)
    assert recorder.conditionings == 0


def test_a_model_without_cross_attention_is_refused(sockets: Any) -> None:
    from types import SimpleNamespace

    from contextual_inversion.nodes.comfy.attention_recording import recording

    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="no cross-attention to record"):
        recording(other, AttentionRecorder())
