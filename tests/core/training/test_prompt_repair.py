"""Repairing one prompt: what moves, towards what, and with several concepts in it."""

from dataclasses import replace

import pytest
import torch
from rounding import equal_but_for_rounding
from stub_model import StubModel

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.files import load_concept, save_bundle
from contextual_inversion.core.models.lora import from_lora
from contextual_inversion.core.models.low_rank import apply_deltas
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.training.prompt_repair import draw, placed_prompt, repair
from contextual_inversion.core.training.regularizers.context import CoReWeights, recommended_weights

WEIGHTS = CoReWeights(1.0, 1.0, "large enough to see")
PROMPT = "a photo of a <thing> in the snow"


def concept(run, **keywords):
    keywords = {"steps": 8, "learning_rate": 0.1, "name": "thing", "keep_latents": True, "resolution": 64, **keywords}
    return run(StubModel(), **keywords).concept


def losses(given, prompt=PROMPT, **keywords):
    model = StubModel()
    one = repair(model, given, prompt, weights=WEIGHTS, **{"learning_rate": 0.02, **keywords})
    with one.run as running:
        *_, last = running
        return one.concepts, last, model


@pytest.mark.parametrize("keywords", [{}, {"method": "xti"}, {"vectors": 2}, {"method": "custom-diffusion"}])
@pytest.mark.parametrize("noise_side", [None, 8])
def test_core_falls_and_only_words_move(run, keywords, noise_side):
    start = concept(run, **keywords)
    (repaired,), last, model = losses([start], steps=30, noise_side=noise_side)
    total = sum(last.losses.values())
    assert total[-5:].mean() < total[:5].mean()
    assert "diffusion" not in last.losses
    assert not torch.equal(repaired.vectors["clip_l"], start.vectors["clip_l"])
    assert repaired.lora is start.lora
    assert (repaired.layer_vectors is None) == (start.layer_vectors is None)
    assert repaired.provenance["optimized_for"]["prompt"] == PROMPT
    # Two passes a step, both for the attention of CoRe: the diffusion loss and its pass are left out.
    assert model.predictions == [(6, True, False), (6, True, True)] * 30, "METHODS.md 1.6: all six latents"
    assert not any(part._forward_hooks for part in model.modules())


def test_noise_is_looked_at_late_and_kept_latents_anywhere(run):
    """METHODS.md 1.10 no. 8. Noise is drawn by the seed and has the side that is asked for."""
    start = concept(run)
    kept, noise = (
        repair(StubModel(), [start], PROMPT).run,
        repair(StubModel(), [start], PROMPT, noise_side=6, seed=2).run,
    )
    other = repair(StubModel(), [start], PROMPT, noise_side=6).run
    for one in (kept, noise, other):
        next(one)
    assert kept.prepared.objective.instances.timesteps == range(1000)
    assert noise.prepared.objective.instances.timesteps == range(800, 1000)
    drawn = noise.prepared.objective.instances.draw(0).timesteps
    assert 800 <= drawn.min() <= drawn.max() < 1000
    assert torch.equal(kept.prepared.bank.latents, start.latents)
    assert noise.prepared.bank.latents.shape[1:] == (4, 6, 6)
    assert not torch.equal(noise.prepared.bank.latents, other.prepared.bank.latents)


def test_several_concepts_in_one_prompt(run):
    one, two = concept(run), concept(run, vectors=2, seed=3, name="other", class_word="wooden toy")
    prompt = "<thing> beside embedding:other, and <thing> again"
    repaired, last, _ = losses([one, two], prompt, steps=20)
    assert [value.name for value in repaired] == ["thing", "other"]
    assert [value.length for value in repaired] == [1, 2]
    for after, before in zip(repaired, (one, two), strict=True):
        # Each its own rows: Adam takes them no further than its rate a step.
        assert 0 < (after.vectors["clip_l"] - before.vectors["clip_l"]).abs().max() < 1.2 * 20 * 0.02
    assert (one.vectors["clip_l"] - two.vectors["clip_l"]).abs().max() > 2 * 20 * 0.02
    assert last.losses["core/embedding"][-4:].mean() < last.losses["core/embedding"][:4].mean()


def test_a_prompt_without_its_concept_is_refused():
    thing, things = (Concept(name, "dog", {"clip_l": torch.ones(1, 32)}) for name in ("thing", "things"))
    assert placed_prompt("a {} at sea", [thing]).template == "a {} at sea"
    version = Concept("thing.2", "dog", {"clip_l": torch.ones(1, 32)})
    assert placed_prompt("embedding:thing.2 and embedding:thing, in the snow", [thing, version]).concepts == (1, 0)
    assert placed_prompt("embedding:things and <thing>", [thing]).concepts == (0,), "part of another word is not it"
    found = placed_prompt("<things> and <thing>, embedding:things", [thing, things])
    assert (found.template, found.concepts) == ("{} and {}, {}", (1, 0, 1))
    with pytest.raises(ValueError, match="does not mention <things>"):
        placed_prompt("a <thing>", [thing, things])
    with pytest.raises(ValueError, match="called alike"):
        placed_prompt("a <thing>", [thing, thing])


@pytest.mark.parametrize("keywords", [{}, {"method": "xti"}, {"method": "custom-diffusion"}])
def test_a_picture_is_what_the_model_samples_with_all_that_was_learned(run, keywords):
    start, model, size = concept(run, **keywords), StubModel(), ImageSize(64, 128)
    found = draw(model, [start], PROMPT, size=(64, 128), seed=4, steps=3, guidance=2.0)
    with torch.no_grad(), apply_deltas(model, from_lora(model, start.lora) if start.lora else {}):
        prompt = {"vectors": start.vectors, "layers": start.layer_vectors}
        encodings = encode_prompts(model, ["a photo of a {} in the snow"], **prompt), encode_prompts(model, [""])
        given = [model.conditioning(one, size) for one in encodings]
        latents = sample(model, *given, shape=(1, 4, 8, 16), steps=3, guidance=2.0, seed=4)
    expected = (model.to_images(latents) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert found.shape == (1, 64, 128, 3)
    equal_but_for_rounding(found, expected)


def test_it_looks_at_the_model_with_its_concepts_loras(run):
    """CoRe of the first step, against the same on a model into which the LoRA has been built."""
    start = concept(run, method="custom-diffusion", weight_rate=0.05)
    _, with_lora, _ = losses([start], steps=1)
    _, without, _ = losses([replace(start, lora=None)], steps=1)
    built_in = StubModel()
    for name, delta in from_lora(built_in, start.lora).items():
        layer = built_in.linear_layers()[name]
        layer.weight.data.add_(delta.weight)
        layer.bias.data.add_(delta.bias)
    expected = repair(built_in, [replace(start, lora=None)], PROMPT, weights=WEIGHTS, learning_rate=0.02, steps=1).run
    *_, expected = expected
    for name, value in expected.losses.items():
        torch.testing.assert_close(with_lora.losses[name], value, rtol=1e-4, atol=0)
    assert (without.losses["core/attention"] / with_lora.losses["core/attention"] - 1).abs() > 1e-3


def test_words_of_two_kinds_and_latents_of_another_autoencoder_are_refused(run):
    plain, layered = concept(run), concept(run, method="xti", name="other")
    with pytest.raises(ValueError, match="with and without a vector for every layer"):
        losses([plain, layered], "<thing> and <other>")
    with pytest.raises(ValueError, match="another autoencoder"):
        losses([replace(plain, latents=torch.zeros(2, 16, 8, 8))])


def test_the_models_own_weights_are_taken_where_none_are_given(run):
    (regularizer,) = repair(StubModel(), [concept(run)], PROMPT).run.regularizers
    chosen = recommended_weights(StubModel())
    assert (regularizer.embedding_weight, regularizer.attention_weight) == (chosen.embedding, chosen.attention)
    (regularizer,) = repair(StubModel(), [concept(run)], PROMPT, weights=WEIGHTS).run.regularizers
    assert (regularizer.embedding_weight, regularizer.attention_weight) == (1.0, 1.0)


def test_a_concept_that_says_no_class_word_is_named():
    thing = Concept("thing", "", {"clip_l": torch.ones(1, 32)})
    with pytest.raises(ValueError, match="'thing' does not say its class word"):
        repair(StubModel(), [thing], PROMPT)


def test_latents_are_kept_only_where_wanted_and_survive_the_file(run, tmp_path):
    kept = concept(run)
    assert kept.latents.shape == (3, 4, 8, 8)
    assert concept(run, keep_latents=False).latents is None
    back = load_concept(save_bundle(kept, tmp_path), widths={"clip_l": 32})
    torch.testing.assert_close(back.latents, kept.latents, atol=1e-2, rtol=1e-3)
    assert torch.equal(back.vectors["clip_l"], kept.vectors["clip_l"])


def test_a_second_stage_leaves_the_latents_with_the_concept(run):
    first = concept(run)
    refined = run(StubModel(), initial=first, method="refine", steps=2).concept
    assert torch.equal(refined.latents, first.latents)
    assert refined.provenance["began_with"] == first.provenance
    assert "began_with" not in first.provenance
    options = {"keep_latents": True, "seed": 1, "resolution": 64}
    anew = run(StubModel(), initial=first, method="refine", steps=2, **options).concept
    assert anew.latents.shape == first.latents.shape


def test_the_same_seed_gives_the_same_words(run):
    start = concept(run)
    first, again = (losses([start], steps=4)[0][0].vectors["clip_l"] for _ in range(2))
    assert torch.equal(first, again)
