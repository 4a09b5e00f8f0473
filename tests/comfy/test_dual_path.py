"""Dual Path in a real ComfyUI: the identities of METHODS.md 3.6 in stock samplers, beside other people's patches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.models.dual_path import DualPath, predict_dual
from contextual_inversion.core.models.lora import to_lora
from contextual_inversion.core.models.low_rank import LowRankDelta, WeightDelta, text_weight_layers
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.text import encode_prompts

KINDS = ("tiny", "sd1", "sd2", "sdxl")
HARD = "a photo of a dog in the snow"
SOFT = "a photo of a <thing> in the snow"


class World:
    """MODEL, CLIP and VAE, both adapters on the same weights, and a concept with a LoRA on every attention."""

    def __init__(self, diffusers: Any, sockets: Any) -> None:
        from contextual_inversion.nodes.comfy.model import ComfyModel

        self.diffusers, self.sockets = diffusers, sockets
        self.comfy = ComfyModel(sockets.model, sockets.clip, sockets.vae)
        self.deltas = {}
        for seed, (name, module) in enumerate(sorted(diffusers.linear_layers().items())):
            if ".attn" in name:
                generator = torch.Generator().manual_seed(seed)
                a = torch.randn(module.in_features, 2, generator=generator) / module.in_features**0.5
                self.deltas[name] = LowRankDelta(a, 0.3 * torch.randn(2, module.out_features, generator=generator), 0.7)
        generator = torch.Generator().manual_seed(3)
        vectors = {
            name: encoder.table()[[1929]].float().cpu()
            + encoder.table().float().std().cpu() * torch.randn(1, encoder.width, generator=generator)
            for name, encoder in self.comfy.text_encoders.items()
        }
        self.concept = Concept("thing", "dog", vectors, lora=to_lora(self.comfy, self.deltas), hard_token="dog")

    def node(
        self, model: Any = None, clip: Any = None, concept: Concept | None = None, prompt: str = SOFT, **options: Any
    ) -> Any:
        from contextual_inversion.nodes.dual_path import DualPathNode

        settings = {"alpha": 0.5, "modulated_path": "soft", "start_percent": 0.0, "end_percent": 1.0} | options
        made = DualPathNode.execute(
            model or self.sockets.model, clip or self.sockets.clip, concept or self.concept, prompt, **settings
        )
        return made.args

    def encode(self, prompt: str, clip: Any = None) -> Any:
        clip = clip or self.sockets.clip
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    def sample(
        self, model: Any, positive: Any, cfg: float = 3.0, sampler: str = "euler", steps: int = 2
    ) -> torch.Tensor:
        import comfy.sample

        latent = torch.zeros(1, self.diffusers.latent_channels, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 5)
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, "normal", positive, self.encode(""), latent, disable_pbar=True, seed=5
        )


@pytest.fixture(scope="module")
def random_models(comfyui: Any) -> Any:
    import random_models

    return random_models


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, random_models: Any) -> World:
    with torch.inference_mode():
        return World(*(random_models.tiny() if request.param == "tiny" else random_models.build(request.param)))


def near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 2e-4) -> None:
    difference = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    print(f"differs by {difference:.1e}")
    assert difference < tolerance


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert float((ours - theirs).abs().max() / theirs.abs().max()) > 1e-3


@torch.inference_mode()
def test_alpha_zero_is_the_plain_model_with_the_hard_prompt_bit_by_bit(world: World) -> None:
    plain = world.sample(world.sockets.model, world.encode(HARD))
    model, conditioning = world.node(alpha=0.0)
    assert torch.equal(world.sample(model, conditioning), plain)
    blended = world.sample(*world.node(alpha=0.5))
    apart(blended, plain)
    # The model that came in knows nothing of it, and the conditioning is the hard prompt to it.
    assert torch.equal(world.sample(world.sockets.model, world.encode(HARD)), plain)
    near(world.sample(world.sockets.model, conditioning), plain)


@torch.inference_mode()
def test_alpha_one_is_the_stock_lora_with_the_soft_prompt(world: World) -> None:
    """Without guidance, since the unconditional half has one path, without the LoRA."""
    import comfy.sd

    from contextual_inversion.nodes.comfy.concept_tokenizer import with_concept

    clip = with_concept(world.sockets.clip, world.concept)
    stock, _ = comfy.sd.load_lora_for_models(world.sockets.model, None, dict(world.concept.lora), 1.0, 0.0)
    expected = world.sample(stock, world.encode(SOFT, clip), cfg=1.0)
    near(world.sample(*world.node(alpha=1.0), cfg=1.0), expected)
    without = Concept("thing", "dog", world.concept.vectors, hard_token="dog")
    soft = world.sample(world.sockets.model, world.encode(SOFT, clip), cfg=3.0)
    near(world.sample(*world.node(concept=without, alpha=1.0)), soft)


@torch.inference_mode()
def test_changed_norms_of_a_text_encoder_are_the_soft_paths_own(world: World) -> None:
    import comfy.sd

    from contextual_inversion.nodes.comfy.concept_tokenizer import with_concept

    norms = {
        name: WeightDelta(0.3 * torch.randn(part.weight.shape, generator=torch.Generator().manual_seed(seed)))
        for seed, (name, part) in enumerate(text_weight_layers(world.diffusers).items())
        if isinstance(part, torch.nn.LayerNorm)
    }
    lora = to_lora(world.comfy, {**world.deltas, **norms})
    concept = Concept("thing", "dog", world.concept.vectors, lora=lora, hard_token="dog")
    clip = with_concept(world.sockets.clip, concept)
    stock, changed = comfy.sd.load_lora_for_models(world.sockets.model, clip, lora, 1.0, 1.0)
    expected = world.sample(stock, world.encode(SOFT, changed), cfg=1.0)
    near(world.sample(*world.node(concept=concept, alpha=1.0), cfg=1.0), expected)
    apart(world.sample(stock, world.encode(SOFT, clip), cfg=1.0), expected)
    plain = world.sample(world.sockets.model, world.encode(HARD))
    assert torch.equal(world.sample(*world.node(concept=concept, alpha=0.0)), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_half_precision_rounds_two_paths_as_it_rounds_one(random_models: Any, dtype: torch.dtype) -> None:
    import comfy.sd

    exact, half = World(*random_models.build("sd1")), World(*random_models.build("sd1", dtype))
    assert half.sockets.model.model.diffusion_model.dtype == dtype
    concept = exact.concept  # vectors as they were drawn, not as half precision rounds them

    def rounding(run: Callable[[World], torch.Tensor]) -> float:
        found, expected = run(half), run(exact)
        assert bool(found.isfinite().all())
        return float((found - expected).norm() / expected.norm())

    def dual(one: World, **options: Any) -> torch.Tensor:
        return one.sample(*one.node(concept=concept, **options))

    def plain(one: World) -> torch.Tensor:
        return one.sample(one.sockets.model, one.encode(HARD))

    def with_lora(one: World) -> torch.Tensor:
        stock, _ = comfy.sd.load_lora_for_models(one.sockets.model, None, dict(concept.lora), 1.0, 0.0)
        return one.sample(stock, one.encode(HARD))

    assert torch.equal(dual(half, alpha=0.0), plain(half))
    bound = 2 * max(rounding(plain), rounding(with_lora))
    for options in ({"alpha": 1.0}, {"alpha": 0.5}, {"alpha": 0.5, "modulated_path": "hard"}):
        assert rounding(lambda one, options=options: dual(one, **options)) < bound
        assert float((dual(half, **options) - plain(half)).norm() / plain(half).norm()) > 2 * bound


@torch.inference_mode()
def test_without_a_difference_alpha_does_not_matter(world: World) -> None:
    ids = {name: encoder.tokenize("dog") for name, encoder in world.comfy.text_encoders.items()}
    same = {name: e.table()[ids[name]].float().cpu() for name, e in world.comfy.text_encoders.items()}
    zero = {key: 0 * value if "lora_up" in key else value for key, value in world.concept.lora.items()}
    concept = Concept("thing", "dog", same, lora=zero)
    plain = world.sample(world.sockets.model, world.encode(HARD))
    for alpha in (0.0, 0.4, 1.0):
        near(world.sample(*world.node(concept=concept, alpha=alpha)), plain)  # also finds the hard token "dog" itself


@pytest.mark.parametrize("modulated", ["soft", "hard"])
@torch.inference_mode()
def test_the_adapters_agree(world: World, modulated: str) -> None:
    latents = torch.randn(2, world.diffusers.latent_channels, 16, 16, generator=torch.Generator().manual_seed(9))
    found = []
    for model in (world.diffusers, world.comfy):
        hard, soft = (model.conditioning(encode_prompts(model, [p]), ImageSize(64, 64)) for p in ("a dog", "a house"))
        path = DualPath(soft, world.deltas, 0.4, modulated, rows=slice(1, None))
        with model.session():
            found.append(predict_dual(model, latents, torch.tensor([40, 900]), hard.expand(2), path).detach())
    near(found[1], found[0], 1e-4)


@torch.inference_mode()
def test_the_other_pairing_and_blocks_of_their_own(world: World) -> None:
    blocks = len(world.comfy.cross_attention_layers())
    one = world.sample(*world.node(alpha=0.5))
    apart(world.sample(*world.node(alpha=0.5, modulated_path="hard")), one)
    assert torch.equal(world.sample(*world.node(alpha_per_block=", ".join(["0.5"] * blocks))), one)
    apart(world.sample(*world.node(alpha_per_block=", ".join(["1"] + ["0"] * (blocks - 1)))), one)


@torch.inference_mode()
def test_outside_its_window_the_hard_path_runs_alone(world: World) -> None:
    plain = world.sample(world.sockets.model, world.encode(HARD), steps=4)
    whole = world.sample(*world.node(), steps=4)
    half = world.sample(*world.node(end_percent=0.5), steps=4)
    apart(half, plain)
    # In a model of random weights the last steps move little; without a window it would be the same bit by bit.
    assert not torch.equal(half, whole)
    assert torch.equal(world.sample(*world.node(start_percent=1.0, end_percent=1.0), steps=4)[0, 0, 0], plain[0, 0, 0])


@torch.inference_mode()
def test_conditionings_of_others_pass_as_in_a_plain_model(world: World) -> None:
    """Two conditionings, one of them ours, equal parts: the other one's part is the plain model's."""
    model, ours = world.node(alpha=0.5)
    other = world.encode("a house by the sea")
    passes: list[int] = []

    def count(run: Any, x: torch.Tensor, *rest: Any, **keywords: Any) -> Any:
        passes.append(len(x))
        return run(x, *rest, **keywords)

    import comfy.patcher_extension

    watched = model.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", count)
    both = world.sample(watched, [*ours, *other], cfg=1.0, steps=1)
    alone = [world.sample(model, one, cfg=1.0, steps=1) for one in (ours, other)]
    near(both, (alone[0] + alone[1]) / 2, 1e-3)
    assert torch.equal(alone[1], world.sample(world.sockets.model, other, cfg=1.0, steps=1))
    assert set(passes) == {2}, "both conditionings share one batch"


@torch.inference_mode()
def test_two_concepts_each_with_its_own_paths(world: World) -> None:
    other = Concept("else", "dog", world.concept.vectors, lora=None, hard_token="cat")
    model, first = world.node(alpha=0.5)
    model, second = world.node(model=model, concept=other, prompt="a <else>", alpha=0.7)
    both = world.sample(model, [*first, *second], cfg=1.0, steps=1)
    alone = [world.sample(model, one, cfg=1.0, steps=1) for one in (first, second)]
    near(both, (alone[0] + alone[1]) / 2, 1e-3)


@torch.inference_mode()
def test_a_replaced_attention_runs_once_a_path(world: World) -> None:
    """Another node's replacement, here ordinary attention, sees batches as large as without us."""
    from contextual_inversion.nodes.comfy.attention import ProbedAttention, cross_attention_layers

    sizes: list[int] = []
    patched = world.sockets.model.clone()
    for index, layer in enumerate(cross_attention_layers(patched.model.diffusion_model, {})):
        patched.set_model_attn2_replace(ProbedAttention(index, lambda _, p: sizes.append(len(p))), *layer.key)
    found = world.sample(*world.node(model=patched, alpha=0.5))
    near(found, world.sample(*world.node(alpha=0.5)), 1e-3)
    assert set(sizes) == {2}


@torch.inference_mode()
def test_a_stock_lora_of_others_stays_in_force(world: World) -> None:
    import comfy.sd

    half = {key: value * (0.5 if key.endswith("alpha") else 1) for key, value in world.concept.lora.items()}
    other, _ = comfy.sd.load_lora_for_models(world.sockets.model, None, half, 1.0, 0.0)
    doubled = Concept("thing", "dog", world.concept.vectors, lora=half, hard_token="dog")
    near(world.sample(*world.node(model=other, concept=doubled, alpha=1.0), cfg=1.0),
         world.sample(*world.node(alpha=1.0), cfg=1.0))  # fmt: skip


@torch.inference_mode()
def test_with_the_attention_recorded_the_picture_is_the_same(world: World) -> None:
    from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
    from contextual_inversion.nodes.comfy.attention_recording import recording

    model, conditioning = world.node(alpha=0.5)
    plain = world.sample(model, conditioning)
    assert torch.equal(world.sample(recording(model, AttentionRecorder()), conditioning), plain)
    recorded = recording(world.sockets.model, AttentionRecorder())
    assert torch.equal(world.sample(*world.node(model=recorded, alpha=0.5)), plain)


@pytest.mark.parametrize("modulated", ["soft", "hard"])
@torch.inference_mode()
def test_the_attention_recorded_does_not_depend_on_the_order_of_the_nodes(world: World, modulated: str) -> None:
    """Also where the hard path, which is the one recorded, has the deltas."""
    from contextual_inversion.core.inspection.attention.recorder import AttentionRecorder
    from contextual_inversion.nodes.comfy.attention_recording import recording

    before, after = AttentionRecorder(), AttentionRecorder()
    model, conditioning = world.node(modulated_path=modulated)
    world.sample(recording(model, after), conditioning, steps=1)
    world.sample(*world.node(model=recording(world.sockets.model, before), modulated_path=modulated), steps=1)
    for one, two in zip(before.maps().values, after.maps().values, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
@torch.inference_mode()
def test_any_sampler_and_nothing_is_left_on_the_model(world: World, sampler: str) -> None:
    parts = list(world.sockets.model.model.modules())
    before = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts]
    assert bool(torch.isfinite(world.sample(*world.node(), sampler=sampler)).all())
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in parts] == before
    assert world.sockets.model.wrappers == {} or all(
        "contextual_inversion_dual_path" not in kind for kind in world.sockets.model.wrappers.values()
    )


@torch.inference_mode()
def test_what_cannot_be_says_what_to_do(world: World) -> None:
    with pytest.raises(ValueError, match=r"Type <thing> or embedding:thing"):
        world.node(prompt="a photo of a dog")
    with pytest.raises(ValueError, match="between 0"):
        world.node(alpha=1.5)
    with pytest.raises(ValueError, match="attention blocks; alpha_per_block has 3"):
        world.node(alpha_per_block="0.1 0.2 0.3")
    with pytest.raises(ValueError, match="takes numbers"):
        world.node(alpha_per_block="much")
    with pytest.raises(ValueError, match="after end_percent"):
        world.node(start_percent=0.9, end_percent=0.1)
    lora = {key.replace("blocks_0", "blocks_9"): value for key, value in world.concept.lora.items()}
    foreign = Concept("thing", "dog", world.concept.vectors, lora=lora, hard_token="dog")
    with pytest.raises(ValueError, match="another kind of model"):
        world.node(concept=foreign)


@torch.inference_mode()
def test_it_says_what_the_hard_path_reads_and_that_a_lora_is_missing(world: World) -> None:
    from contextual_inversion.nodes.dual_path import DualPathNode

    for lora in (world.concept.lora, None):
        concept = Concept("thing", "dog", world.concept.vectors, lora=lora, hard_token="dog")
        sockets = (world.sockets.model, world.sockets.clip, concept, SOFT)
        said = DualPathNode.execute(*sockets, 0.5, "soft", 0.0, 1.0).ui.as_dict()["text"][0]
        assert repr(HARD) in said
        assert ("has no LoRA for the model: both paths have its weights" in said) is (lora is None)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a <thing> here", "a dog here"),
        ("a embedding:thing here", "a dog here"),
        ("embedding:thing, (embedding:thing:1.2) embedding:things", "dog, (dog:1.2) embedding:things"),
        ("(<thing>:1.3)", "(dog:1.3)"),
    ],
)
def test_the_hard_prompt(comfyui: Any, prompt: str, expected: str) -> None:
    from contextual_inversion.nodes.dual_path import with_words

    assert with_words(prompt, "thing", "dog") == expected
