"""Each node on each family beyond Stable Diffusion: what it gives, and what it refuses in words."""

import json
from dataclasses import replace

import pytest
import torch
from family_graphs import (
    KEEP,
    KINDS,
    QUIET,
    SHOWN,
    SOCKETS,
    WORD_AND_LORA,
    call,
    graph,
    prompt,
    said,
    sampler,
    stock,
)

from contextual_inversion.core.models.lora import TEXT_STEMS

__all__ = ["KINDS"]
SIZE = {"width": 64, "height": 64}
PROMPT = "a red castle"
AUTO = "auto (for this model)"
TOKENS = {"z_image": (16, 32)}
"""Of a picture of 64 pixels a side: how many there are, and how many the denoiser makes of them."""


def castle():
    """One picture of 64 pixels a side."""
    return {
        "images": call("DemoImages", concept="castle", count=1, background="grass", seed=0),
        "small": stock("ImageScale", image=["images", 0], upscale_method="area", crop="disabled", **SIZE),
    }


class Watch:
    """In the place of an attention override: computes what would be computed, and notes beside it which share of each
    image token's attention goes to the image, as a reference in float64."""

    def __init__(self, image, padded):
        self.image, self.padded, self.shares = image, padded, []

    def __call__(self, function, query, key, value, heads, *rest, **keywords):
        q, k = query.double(), key.double()
        if not keywords.get("skip_reshape", False):
            q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
        text = k.shape[2] - self.padded
        if text > 0 and q.shape[2] == k.shape[2]:
            scores = q[:, :, text : text + self.image] @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT
            scores = scores * q.shape[-1] ** -0.5
            mask = rest[0] if rest else keywords.get("mask")
            if mask is not None:
                scores = scores + mask.reshape(len(mask), -1, mask.shape[-1])[:, None, :1].double()
            self.shares.append(scores.softmax(-1)[..., text:].sum(-1).mean(1))
        return function(query, key, value, heads, *rest, **keywords)


@pytest.fixture
def class_word_itself(comfyui):
    """The API prompt of a node that gives a concept whose vectors are those of its class word."""
    from contextual_inversion.core.concept import Concept
    from contextual_inversion.core.models.words import words_vectors
    from contextual_inversion.nodes.comfy.clip_session import encoders_of

    class Same:
        RETURN_TYPES, FUNCTION, CATEGORY = ("CONCEPT",), "give", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"clip": ("CLIP", {})}}

        def give(self, clip):
            rows = {name: words_vectors(encoder, "house") for name, encoder in encoders_of(clip).items()}
            return (Concept("same", "house", rows),)

    comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestSame"] = Same
    yield {"class_type": "ContextualInversionTestSame", "inputs": {"clip": ["model", 1]}}
    del comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestSame"]


@pytest.fixture
def watched(comfyui, loader):
    """The API prompt of a node that puts a `Watch` into the family's MODEL, and that watch."""
    watch = Watch(*TOKENS.get(loader["inputs"]["kind"], (16, 16)))

    class Watching:
        RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "watch", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"model": ("MODEL", {})}}

        def watch(self, model):
            ours = model.clone()
            ours.model_options["transformer_options"]["optimized_attention_override"] = watch
            return (ours,)

    comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestWatch"] = Watching
    yield {"class_type": "ContextualInversionTestWatch", "inputs": {"model": ["model", 0]}}, watch
    del comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestWatch"]


def require_whole(maps, watch):
    """That what every text token draws in `maps`, and what the image draws, is 1, in each block and each pass."""
    groups, passes = len(maps.values), len(maps.bins)
    assert groups > 1
    assert len(watch.shares) == groups * passes
    for group, values in enumerate(maps.values):
        text = values.double().sum(dim=2)[:, 0].flatten(1)
        image = torch.stack([watch.shares[step * groups + group][0] for step in range(passes)])
        assert bool((image > 0.01).all())
        assert torch.allclose(text + image, torch.ones_like(image), atol=1e-5)


@pytest.mark.supports("RecordAttention, ShowAttention")
def test_all_text_tokens_and_the_image_together_are_1_while_sampling(run_graph, loader, watched):
    node, watch = watched
    plain = {"model": loader, "positive": prompt(PROMPT), **sampler(["model", 0], ["positive", 0])}
    nodes = {**plain, "watch": node, "record": call("RecordAttention", model=["watch", 0], step_bins=2, cells=8)}
    nodes |= sampler(["record", 0], ["positive", 0])
    for one in (plain, nodes):
        one["sampler"]["inputs"]["cfg"] = 1.0  # the prompt alone
    before = run_graph(plain, keep={"latent": ("sampler", 0)})
    after = run_graph(nodes, keep={"latent": ("sampler", 0), "attention": ("record", 1)})
    assert after.status == "success", said(after)
    assert torch.equal(before.kept["latent"]["samples"], after.kept["latent"]["samples"])
    require_whole(after.kept["attention"].recorder.maps(), watch)


@pytest.mark.supports("AttendImage")
def test_attend_image_sees_a_picture_that_exists(run_graph, loader, watched):
    node, watch = watched
    sockets = {**SOCKETS, "model": ["watch", 0], "image": ["small", 0]}
    attend = call("AttendImage", **sockets, prompt=PROMPT, timesteps="800, 300", seed=0)
    show = call("ShowAttention", attention=["attend", 0], prompt=PROMPT, clip=["model", 1], **SHOWN)
    nodes = {"model": loader, **castle(), "watch": node, "attend": attend, "show": show}
    run = run_graph(nodes, keep={"attention": ("attend", 0), "images": ("show", 0)})
    assert run.status == "success", said(run)
    require_whole(run.kept["attention"].recorder.maps(), watch)
    assert len(run.kept["images"]) == len(PROMPT.split())
    nodes["attend"]["inputs"]["timesteps"] = "300"
    later = run_graph(nodes, keep={"attention": ("attend", 0)}).kept["attention"].recorder.maps()
    both = run.kept["attention"].recorder.maps()
    for one, alone in zip(both.values, later.values, strict=True):
        assert torch.allclose(one[-1], alone[0], atol=1e-6)
        assert not torch.allclose(one[0], alone[0], atol=1e-6)


@pytest.mark.supports("ShowAttention: words of a chosen text encoder")
def test_the_words_are_those_of_a_text_encoder_that_the_denoiser_reads(run_graph, loader):
    """Flux reads T5's tokens and no others; those of SD3's CLIPs are one, cut alike and put side by side."""
    read = {"sd35": "clip_g", "flux": "t5xxl", "qwen_image": "qwen25_7b", "z_image": "qwen3_4b"}
    names = [read[loader["inputs"]["kind"]]]
    attend = call("AttendImage", **SOCKETS, image=["small", 0], prompt=PROMPT, timesteps="300", seed=0)
    nodes = {"model": loader, **castle(), "attend": attend}
    for name in ("auto", *names):
        show = call("ShowAttention", attention=["attend", 0], prompt=PROMPT, clip=["model", 1], **SHOWN)
        nodes[name] = {**show, "inputs": {**show["inputs"], "text_encoder": name}}
    run = run_graph(nodes, keep={name: (name, 0) for name in ("auto", *names)})
    assert run.status == "success", said(run)
    for name in names:
        assert torch.equal(run.kept[name], run.kept["auto"])
    nodes["auto"]["inputs"]["text_encoder"] = "pile_t5xl"
    refused = run_graph(nodes)
    assert f"it can be {', '.join(names)}" in refused.error["exception_message"]


@pytest.mark.supports("OptimizeForPrompt")
@pytest.mark.parametrize("latents", ["pure noise", "training pictures"])
def test_a_prompt_is_repaired(run_graph, loader, latents):
    repair = call(
        "OptimizeForPrompt", **SOCKETS, concept=["train", 0], prompt="a {} in the snow", steps=3, learning_rate=0.02,
        batch=1, latents=latents, seed=0, **SIZE,
    )  # fmt: skip
    nodes = {**graph(loader, train=WORD_AND_LORA, weight_rate=0.02, learning_rate=0.2, keep_latents=True)}
    run = run_graph({**nodes, "repair": repair}, keep={**KEEP, "mended": ("repair", 0), "pictures": ("repair", 1),
                                                       "losses": ("repair", 2)})  # fmt: skip
    assert run.status == "success", said(run)
    before, after, losses = run.kept["concept"], run.kept["mended"], run.kept["losses"]
    assert losses["loss"][-1] < losses["loss"][0]
    assert all(not torch.equal(value, after.vectors[name]) for name, value in before.vectors.items())
    assert all(torch.equal(value, after.lora[name]) for name, value in before.lora.items())
    assert run.kept["pictures"].shape == (2, 64, 64, 3)
    assert not torch.equal(*run.kept["pictures"])


@pytest.mark.supports("DiagnoseConcept")
def test_a_concept_is_diagnosed(run_graph, loader, class_word_itself):
    """Of a word that is the class word itself, all figures are the class word's own, to the last digit."""
    asked = {"prompts": "places", "own_prompts": "", "class_word": "", "most_prompts": 2, "images": 1, "steps": 2}
    asked |= {"guidance": 4.0, "seed": 0, **SIZE, "model": ["model", 0], "clip": ["model", 1]}
    learned = call("DiagnoseConcept", **asked, concept=["train", 0])
    same = {"same": class_word_itself, "of_same": call("DiagnoseConcept", **asked, concept=["same", 0])}
    nodes = {**graph(loader, train=WORD_AND_LORA, weight_rate=0.1, vectors=1), "learned": learned, **same}
    run = run_graph(nodes, keep={"learned": ("learned", 2), "same": ("of_same", 2)})
    assert run.status == "success", said(run)
    word, house = json.loads(run.kept["learned"])["subjects"]
    assert word["means"].keys() == {"sim1", "sim2", "skl", "skl_normalised"}
    assert all(abs(word["means"][name] - house["means"][name]) > 1e-6 for name in word["means"])
    word, house = json.loads(run.kept["same"])["subjects"]
    assert word["means"] == house["means"]
    assert all(abs(cosine - 1) < 1e-5 for _, cosine in word["cosines"])


@pytest.mark.supports("RefineConcept: LoRA")
@pytest.mark.parametrize("least_rank", [0, 1])
def test_a_word_is_refined(run_graph, loader, least_rank):
    refine = call(
        "RefineConcept", **SOCKETS, images=["images", 0], concept=["train", 0], train="LoRA", recipe=AUTO, steps=3,
        learning_rate=0.02, batch=1, rank=4, seed=0, continue_interrupted=True, least_rank=least_rank, resolution=64,
        **QUIET,
    )  # fmt: skip
    nodes = {**graph(loader), "refine": refine}
    run = run_graph(nodes, keep={**KEEP, "refined": ("refine", 0)})
    assert run.status == "success", said(run)
    word, refined = run.kept["concept"], run.kept["refined"]
    assert all(torch.equal(value, refined.vectors[name]) for name, value in word.vectors.items())
    ups = {name: value for name, value in refined.lora.items() if name.endswith("lora_up.weight")}
    idle = [name for name, value in ups.items() if not bool((value != 0).any())]
    # What the last block does to the text comes to nobody.
    assert len(idle) < len(ups) / 2
    assert all("_add_" in name or "context" in name for name in idle), idle


SPACED = ("qwen_image", "z_image")
"""To whose tokenizer the space before a word of ours is a token of its own, in training as in use."""


@pytest.mark.supports("TrainConcept: DreamBooth as a LoRA")
@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_dreambooth_as_a_lora_learns_the_denoiser_alone(run_graph, loader, prior):
    """The word is "sks house", as many rows as each text encoder has tokens for it, and stays what it is."""
    numbers = {"weight_rate": 0.02, "vectors": 0, "prior_preservation": prior, "prior_pictures": 2}
    nodes = graph(loader, train="DreamBooth, LoRA", **numbers)
    nodes["apply"] = call("ApplyConcept", model=["model", 0], clip=["model", 1], concept=["train", 0],
                          strength_model=1.0, strength_clip=1.0, name="")  # fmt: skip
    nodes |= {"positive": prompt("a photo of a <keep>", ("apply", 1)), **sampler(["apply", 0], ["positive", 0])}
    nodes |= {"typed": prompt("a photo of a sks house"), "word": prompt("a photo of a <keep>", ("apply", 1))}
    keep = {**KEEP, "latent": ("sampler", 0), "word": ("word", 0), "typed": ("typed", 0)}
    run = run_graph(nodes, keep=keep)
    assert run.status == "success", said(run)
    concept = run.kept["concept"]
    assert concept.lora
    assert all(name.startswith("lora_unet") for name in concept.lora)
    assert any(bool((value != 0).any()) for name, value in concept.lora.items() if name.endswith("up.weight"))
    word, typed = run.kept["word"][0][0], run.kept["typed"][0][0]
    if loader["inputs"]["kind"] in SPACED:
        assert word.shape[1] == typed.shape[1] + 1
    else:
        assert torch.allclose(word, typed, atol=1e-5)
    assert ("prior" in "".join(run.kept["loss"])) == (prior > 0)


REFUSED = {
    "PretrainTuningEncoder": {
        "world_pictures": 1, "size": AUTO, "rank": 1, "steps": 1, "batch": 1, "learning_rate": 0.0,
        "contrastive_weight": 0.1, "seed": 0, "name": "none", "continue_interrupted": False,
    },
    "PredictConcept": {"name": "none", "class_word": "house"},
    "TunePredictedConcept": {
        "name": "none", "class_word": "house", "steps": 1, "batch": 1, "tuned": "lora", "lora_learning_rate": 0.1,
        "vector_learning_rate": 0.1, "contrastive_weight": 0.0, "norm_weight": 0.0, "dual_path": True, "alpha": 0.5,
        "seed": 0, "more_steps": False, "gradient_checkpointing": False,
    },
}  # fmt: skip


@pytest.mark.supports("PredictConcept, TunePredictedConcept, PretrainTuningEncoder", says="refused")
@pytest.mark.parametrize("node", REFUSED)
def test_a_tuning_encoder_is_refused_before_any_work(run_graph, loader, node, monkeypatch):
    def works(*_, **__):
        raise AssertionError("it began")

    monkeypatch.setattr("comfy.model_management.load_models_gpu", works)
    sockets = dict(SOCKETS)
    if node != "PretrainTuningEncoder":
        sockets |= {"image": ["images", 0], "tuning_encoder": ["encoder", 0]}
    encoder = call("LoadTuningEncoder", file="bundled: demo model")
    nodes = {"model": loader, **castle(), "encoder": encoder, "refused": call(node, **sockets, **REFUSED[node])}
    run = run_graph(nodes, keep={"loss": ("refused", 1)})
    assert run.status == "error"
    assert "a tuning-encoder looks with a UNet of Stable Diffusion" in run.error["exception_message"]
    assert "Train Concept" in run.error["exception_message"]


@pytest.mark.supports("RefineConcept: all weights", says="refused")
def test_a_second_stage_of_all_weights_is_refused_before_any_work(run_graph, loader):
    refine = call(
        "RefineConcept", **SOCKETS, images=["images", 0], concept=["train", 0], train="all weights", recipe=AUTO,
        steps=3, learning_rate=0.02, batch=1, rank=4, seed=0, continue_interrupted=True, resolution=64, **QUIET,
    )  # fmt: skip
    run = run_graph({**graph(loader, steps=1), "refine": refine}, keep={**KEEP, "refined": ("refine", 0)})
    assert run.status == "error"
    assert run.error["node_id"] == "refine"
    assert "too large for a change of every weight" in run.error["exception_message"]


def blended(alpha, **changes):
    """Dual Path on the concept of node "word", and two steps of a sampler behind it."""
    numbers = {"alpha": alpha, "modulated_path": "soft", "start_percent": 0.0, "end_percent": 1.0}
    sockets = {"model": ["model", 0], "clip": ["model", 1], "concept": ["word", 0]}
    node = call("DualPath", **sockets, prompt="a <keep> in a jar", alpha_per_block="", **{**numbers, **changes})
    return {"paths": node, **sampler(["paths", 0], ["paths", 1])}


def plainly(concept, **strengths):
    """The same with Apply Concept."""
    node = call("ApplyConcept", model=["model", 0], clip=["model", 1], concept=[concept, 0],
                **{"strength_model": 1.0, "strength_clip": 1.0, "name": "keep", **strengths})  # fmt: skip
    text = prompt("a <keep> in a jar", ("apply", 1))
    return {"apply": node, "text": text, **sampler(["apply", 0], ["text", 0])}


@pytest.fixture
def words(comfyui, class_word_itself):
    """API prompts of nodes that give the class word, and a word in its direction that is longer, with a LoRA or not."""
    from contextual_inversion.core.concept import Concept

    class Longer:
        RETURN_TYPES, FUNCTION, CATEGORY = ("CONCEPT",), "give", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"concept": ("CONCEPT", {}), "trained": ("CONCEPT", {}), "lora": ("BOOLEAN", {})}}

        def give(self, concept, trained, lora):
            longer = {name: 1.5 * value for name, value in concept.vectors.items()}
            return (Concept("keep", "house", longer, lora=dict(trained.lora) if lora else None),)

    comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestLonger"] = Longer
    inputs = {"concept": ["hard", 0], "trained": ["train", 0]}
    yield lambda lora: {
        "hard": class_word_itself,
        "word": {"class_type": "ContextualInversionTestLonger", "inputs": {**inputs, "lora": lora}},
    }
    del comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestLonger"]


@pytest.mark.supports("DualPath")
def test_two_paths_are_the_plain_path_at_either_end_and_between_them_otherwise(run_graph, loader, words):
    """At 0 the model as it came with the nearest word, at 1 the learned word: bit for bit; with its LoRA as close as
    one that is beside the weights is to one that is in them."""
    trained = graph(loader, train=WORD_AND_LORA, weight_rate=0.1, vectors=1)

    def drawn(nodes, lora=True, cfg=4.0):
        nodes["sampler"]["inputs"]["cfg"] = cfg
        run = run_graph({**trained, **words(lora), **nodes}, keep={"latent": ("sampler", 0)})
        assert run.status == "success", said(run)
        return run.kept["latent"]["samples"]

    hard, soft = drawn(plainly("hard")), drawn(plainly("word"), lora=False)
    assert torch.equal(drawn(blended(0.0)), hard)
    assert torch.equal(drawn(blended(1.0), lora=False), soft)
    # Of the prompt alone: the negative one has no two paths, and so no LoRA (METHODS.md 3.6).
    with_lora = drawn(plainly("word"), cfg=1.0)
    assert torch.allclose(drawn(blended(1.0), cfg=1.0), with_lora, atol=1e-3 * with_lora.abs().max().item())
    between = drawn(blended(0.5), cfg=1.0)
    for end in (with_lora, drawn(plainly("hard"), cfg=1.0), drawn(plainly("word"), lora=False, cfg=1.0)):
        assert not torch.allclose(between, end, atol=1e-2)
    near = {alpha: (drawn(blended(alpha), lora=False) - hard).norm().item() for alpha in (1e-4, 0.01)}
    assert 0 < near[1e-4] < 0.1 * near[0.01], "from the hard path it goes on steadily"
    assert torch.equal(drawn(blended(0.5, start_percent=1.0)), hard), "outside its window the hard path runs alone"


def test_a_lora_begins_where_it_is_told_to(run_graph, loader, words):
    """At 1 never: bit for bit the word alone. Just behind the first step all but that one have it."""
    trained = graph(loader, train=WORD_AND_LORA, weight_rate=0.1, vectors=1)

    def drawn(lora=True, **options):
        run = run_graph({**trained, **words(lora), **plainly("word", **options)}, keep={"latent": ("sampler", 0)})
        assert run.status == "success", said(run)
        return run.kept["latent"]["samples"]

    whole, without = drawn(), drawn(lora=False)
    assert torch.equal(drawn(start_percent=1.0), without)
    late = drawn(start_percent=1e-3)
    for end in (whole, without):
        assert not torch.allclose(late, end, atol=1e-3 * end.abs().max().item())


@pytest.fixture
def in_text(comfyui):
    """API prompt of a node that gives a concept a LoRA in the attention of the text encoders beside its own."""
    import comfy.lora
    import comfy.utils

    class InText:
        RETURN_TYPES, FUNCTION, CATEGORY = ("CONCEPT",), "give", "test"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"concept": ("CONCEPT", {}), "clip": ("CLIP", {})}}

        def give(self, concept, clip):
            text, draw, lora = clip.cond_stage_model, torch.Generator().manual_seed(0), {}
            for stem, name in comfy.lora.model_lora_keys_clip(text, {}).items():
                weight = comfy.utils.get_attr(text, name)
                if stem.startswith(TEXT_STEMS) and weight.ndim == 2 and "attn" in name.lower():
                    high, wide = weight.shape
                    up, down = (torch.randn(*shape, generator=draw) for shape in ((high, 1), (1, wide)))
                    lora |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
            return (replace(concept, lora={**(concept.lora or {}), **lora}),)

    comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestInText"] = InText
    inputs = {"concept": ["plain", 0], "clip": ["model", 1]}
    yield {"class_type": "ContextualInversionTestInText", "inputs": inputs}
    del comfyui.nodes.NODE_CLASS_MAPPINGS["ContextualInversionTestInText"]


def test_the_soft_path_has_a_loras_part_in_text_encoders(run_graph, loader, words, in_text):
    """At 1 it is what Apply Concept does with the same file, whose part in the text encoder shows."""
    trained = graph(loader, train=WORD_AND_LORA, weight_rate=0.1, vectors=1)

    def drawn(nodes, text=True):
        word = words(True)
        given = {"plain": word["word"], "word": in_text, "hard": word["hard"]} if text else word
        nodes["sampler"]["inputs"]["cfg"] = 1.0
        run = run_graph({**trained, **given, **nodes}, keep={"latent": ("sampler", 0)})
        assert run.status == "success", said(run)
        return run.kept["latent"]["samples"]

    whole, without = drawn(plainly("word")), drawn(plainly("word"), text=False)
    part = (whole - without).norm()
    assert part > 0
    assert (drawn(blended(1.0)) - whole).norm() < 0.1 * part


@pytest.mark.supports("DualPath")
def test_two_paths_of_one_word_are_one_path(run_graph, loader, words):
    """Without a LoRA, and with the nearest word's own vectors, nothing depends on alpha."""
    trained = graph(loader, train=WORD_AND_LORA, weight_rate=0.1, vectors=1)
    nodes = {**trained, **words(False), **blended(0.3)}
    nodes["paths"]["inputs"]["concept"] = ["hard", 0]
    nodes["paths"]["inputs"]["prompt"] = "a <same> in a jar"
    both = run_graph(nodes, keep={"latent": ("sampler", 0)})
    assert both.status == "success", said(both)
    plain = run_graph({**trained, **words(False), **plainly("hard")}, keep={"latent": ("sampler", 0)})
    ours, theirs = (run.kept["latent"]["samples"] for run in (both, plain))
    assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.supports("DualPath")
def test_two_paths_are_recorded_without_changing_them(run_graph, loader, words):
    nodes = {**graph(loader, train=WORD_AND_LORA, weight_rate=0.1, vectors=1), **words(True), **blended(0.5)}
    plain = run_graph(nodes, keep={"latent": ("sampler", 0)})
    nodes["record"] = call("RecordAttention", model=["paths", 0], step_bins=1, cells=8)
    nodes |= sampler(["record", 0], ["paths", 1])
    watched = run_graph(nodes, keep={"latent": ("sampler", 0), "attention": ("record", 1)})
    assert watched.status == "success", said(watched)
    assert torch.equal(plain.kept["latent"]["samples"], watched.kept["latent"]["samples"])
    assert all(bool((one.sum(dim=2) < 1).all()) for one in watched.kept["attention"].recorder.maps().values)
