"""A diagnosis agrees with its parts, and the report on attention with what shares of areas must be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.inspection.diagnosis.context_similarity import ContextProbe, context_similarity
from contextual_inversion.core.inspection.diagnosis.diagnose import DiagnosedWord, context_cosines, diagnose
from contextual_inversion.core.inspection.diagnosis.probes import parse_probes, place_probes
from contextual_inversion.core.inspection.diagnosis.report import markdown, plot
from contextual_inversion.core.inspection.diagnosis.symmetric_kl import Filling, Sampling, skl, word_pair
from contextual_inversion.core.inspection.world.attention_report import (
    attended,
    attention_report,
    over_chance,
    questions,
    share,
)
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.lora import to_lora
from contextual_inversion.core.models.low_rank import LowRankDelta, text_layers
from contextual_inversion.core.models.protocol import ImageSize
from contextual_inversion.core.models.sampling import sample
from contextual_inversion.core.models.text import encode_prompts
from contextual_inversion.core.models.tiny import load_tiny

PROBES = [
    ContextProbe("a photo of a {} in the snow", "snow", "a photo in the snow"),
    ContextProbe("a {} on a wooden table", "table", "a wooden table"),
]


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return DiffusersModel.from_tiny(load_tiny())


def word(model: DiffusersModel, text: str) -> dict[str, torch.Tensor]:
    encoder = model.text_encoders["clip_l"]
    return {"clip_l": encoder.table()[encoder.tokenize(text)].detach().clone()}


def test_a_word_against_itself(model: DiffusersModel) -> None:
    """The class word's own row as a concept differs in nothing, and is its own nearest word."""
    found = diagnose(model, Concept("twin", "cat", word(model, "cat")), PROBES, images=0)
    ours, theirs = found.subjects
    assert ours.means == pytest.approx(theirs.means, abs=1e-5)
    assert [value for _, value in ours.cosines] == pytest.approx([1.0] * len(ours.cosines), abs=1e-5)
    assert [name for name, _ in ours.cosines] == ["start", "a", "photo", "of", "a", "in", "the", "snow", "end"]
    (embedding,) = ours.embeddings
    assert embedding.nearest[0] == ("cat", pytest.approx(1.0, abs=1e-5))
    table = model.text_encoders["clip_l"].table().norm(dim=1)
    assert embedding.norm == pytest.approx(float(word(model, "cat")["clip_l"].norm()), rel=1e-5)
    assert embedding.shorter == pytest.approx(float((table < embedding.norm).float().mean()), abs=1e-4)
    norms = found.vocabulary["clip_l"]
    assert norms["mean"] == pytest.approx(float(table.mean()), rel=1e-4)
    assert norms["percentile_5"] < norms["mean"] < norms["percentile_95"]


def test_a_concept_is_diagnosed_with_all_that_it_learned(model: DiffusersModel) -> None:
    """Equal vectors for all layers are one vector; other ones, and a LoRA, change the figures; the model stays."""
    count, size = len(model.cross_attention_layers()), ImageSize(64, 64)
    plain = Concept("twin", "cat", word(model, "cat"))
    equal = {name: value.expand(count, -1, -1) for name, value in plain.vectors.items()}
    generator = torch.Generator().manual_seed(0)
    other = {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in equal.items()}
    layers = {**dict(model.linear_layers()), **text_layers(model)}
    deltas = {}
    for name in [name for name in layers if name.endswith(("attn2.to_k", "q_proj"))]:
        delta = LowRankDelta.initial(layers[name], 2, generator=generator)
        deltas[name] = LowRankDelta(delta.a.detach(), torch.randn(delta.b.shape, generator=generator))
    variants = {"plain": plain, "equal": replace(plain, layer_vectors=equal)}
    variants |= {"other": replace(plain, layer_vectors=other), "lora": replace(plain, lora=to_lora(model, deltas))}
    found = {key: diagnose(model, one, PROBES, images=1, steps=2, size=size).subjects for key, one in variants.items()}
    for key, (ours, theirs) in found.items():
        assert theirs.means == found["plain"][1].means, "the class word is that of the model as it came"
        same = [ours.means[name] == pytest.approx(value, abs=1e-4) for name, value in found["plain"][0].means.items()]
        assert all(same) if key in ("plain", "equal") else not any(same), key
        cosines = [one for _, one in ours.cosines]
        assert (min(cosines) == pytest.approx(1, abs=1e-5)) == (key in ("plain", "equal", "lora"))
    fewer = replace(plain, layer_vectors={name: value[1:] for name, value in equal.items()})
    with pytest.raises(ValueError, match="layers of another model"):
        diagnose(model, fewer, PROBES, images=0)


@pytest.mark.parametrize(
    "wrong",
    [
        ContextProbe("a {} in the snow", "beach", "a picture of the beach"),
        ContextProbe("a {} in the snow", "snow", "a picture of the beach"),
        ContextProbe("a {} " + "very " * 80 + "near", "near", "near"),
    ],
)
def test_a_wrong_prompt_is_refused_before_anything_is_sampled(model: DiffusersModel, wrong, monkeypatch) -> None:
    monkeypatch.setattr(model, "predict", pytest.fail)
    for probes in ([*PROBES, wrong], []):
        with pytest.raises(ValueError, match=r"is not in the prompt|takes \d+ tokens|no probes"):
            diagnose(model, Concept("twin", "cat", word(model, "cat")), probes, size=ImageSize(64, 64), steps=1)


def test_means_are_those_of_the_measures(model: DiffusersModel) -> None:
    vectors = word(model, "red house")
    found = diagnose(model, Concept("it", "cat", vectors), PROBES, images=1, steps=2, seed=4)
    expected = context_similarity(model, PROBES, vectors=vectors)
    together = skl(model, PROBES, Filling(vectors), Sampling(steps=2, seed=4))
    means = found.subjects[0].means
    assert (means["sim1"], means["sim2"]) == pytest.approx(expected, abs=1e-5)
    assert (means["skl"], means["skl_normalised"]) == pytest.approx(together, rel=1e-4)
    cosines = context_cosines(model.text_encoders["clip_l"], PROBES[0].template, DiagnosedWord("it", vectors), "cat")
    assert cosines == found.subjects[0].cosines
    before, after = cosines[:5], cosines[5:]
    # causal: nothing before the concept can see it, and what comes after does
    assert [value for _, value in before] == pytest.approx([1.0] * 5, abs=1e-5)
    assert all(value < 1 - 1e-4 for _, value in after)
    text, picture = markdown(found), plot(found)
    assert all(probe.template in text for probe in PROBES)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3


@pytest.mark.parametrize(("word", "tokens"), [("snow", 1), ("birdhouses", 2)])
def test_skl_is_that_of_the_last_steps_probabilities(model: DiffusersModel, word: str, tokens: int) -> None:
    """Against the probe of training: whole probabilities of the last pass, layers of 16 x 16, heads averaged; a sum
    over the pixels, the mean over the context word's tokens (METHODS.md 2.7)."""
    probe, last = ContextProbe(f"a photo of a {{}} in the {word}", word, f"a photo of the {word}"), {}
    found = skl(model, [probe], Filling(words="cat"), Sampling(steps=2, seed=9))
    with model.session(), torch.no_grad():
        size = ImageSize(128, 128)
        positive = model.conditioning(encode_prompts(model, [probe.template], words="cat"), size)
        negative = model.conditioning(encode_prompts(model, [""]), size)

        def watch(step: int, steps: int, rows: slice):
            return lambda layer, p: last.__setitem__(layer, p[rows].mean(1)[0])

        sample(model, positive, negative, shape=(1, model.latent_channels, 16, 16), steps=2, seed=[9], probe=watch)
    maps = torch.stack([p for p in last.values() if p.shape[0] == 256]).mean(0).double().numpy()
    (concept,), context = word_pair(model, probe, None, "cat")
    assert len(context) == tokens
    raw, normalised = [], []
    for at in context:
        a, b = maps[:, concept], maps[:, at]
        raw.append(((a - b) * np.log(a / b)).sum() / 2)
        a, b = a / a.sum(), b / b.sum()
        normalised.append(((a - b) * np.log(a / b)).sum() / 2)
    assert found.raw == pytest.approx(np.mean(raw), rel=1e-3)
    assert found.normalised == pytest.approx(np.mean(normalised), rel=1e-3)
    assert found.normalised > 0


def test_shares_of_an_even_map_are_chance() -> None:
    mask = (torch.rand(9, 7, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    heat = torch.rand(9, 7, generator=torch.Generator().manual_seed(1))
    assert float(share(torch.ones(9, 7), mask)) == pytest.approx(float(mask.mean()))
    assert float(share(heat, mask) + share(heat, 1 - mask)) == pytest.approx(1.0)
    assert float(share(mask, mask)) == 1.0


def test_the_report_counts_every_scene_once(model: DiffusersModel) -> None:
    asked = questions(3, seed=2)
    assert asked == questions(3, seed=2)
    report = attention_report(model, 3, timesteps=(500,), seed=2)
    from contextual_inversion.core.world.render import render

    drawn = [render(one.scene) for one in asked]
    masks = torch.from_numpy(np.stack([mask.subject for _, mask in drawn])).float()
    assert report["subject_area"] == pytest.approx(float(masks.mean()))
    with model.session():
        maps = attended(model, torch.from_numpy(np.stack([p for p, _ in drawn])), asked, None, (500,), 2)
        pairs = [word_pair(model, one.probe, None, one.words) for one in asked]
    each = over_chance(maps, pairs, masks, layers=maps.layers_of(side=16))
    assert report["subject_inside"] == pytest.approx(float(each[:, 0].mean()), rel=1e-4)
    assert report["background_over_chance"] == pytest.approx(float(each[:, 3].mean()), rel=1e-4)
    assert len(report["layers"]) == len(model.cross_attention_layers())
    assert [entry["timestep"] for entry in report["timesteps"]] == [500]
    # a learned word that is the class word's own row looks where the class word looks
    by_word = attention_report(model, 2, concept="horned-cat", timesteps=(500,))
    by_vector = attention_report(model, 2, word(model, "cat"), concept="horned-cat", timesteps=(500,))
    assert by_vector["subject_inside"] == pytest.approx(by_word["subject_inside"], rel=1e-4)
    with pytest.raises(ValueError, match="which held-out concept"):
        attention_report(model, 1, word(model, "cat"))


def test_prompts_are_parsed_and_refused() -> None:
    parsed = parse_probes("# places\n\na {} in the snow\na {} by a red car | red\na {} on ice | ice | ice alone\n")
    assert parsed == [
        ContextProbe("a {} in the snow", "snow", "a picture of snow"),
        ContextProbe("a {} by a red car", "red", "a picture of red"),
        ContextProbe("a {} on ice", "ice", "ice alone"),
    ]
    for wrong in ("a cat in the snow", "{} and {}", "a {} | b | c | d", "a {} | "):
        with pytest.raises(ValueError, match="line 1"):
            parse_probes(wrong)
    assert all(probe.word in probe.template and probe.word in probe.reference for probe in place_probes())
