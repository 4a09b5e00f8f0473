"""The evaluation on pictures whose content is known, because they were rendered."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contextual_inversion.core.concept import Concept
from contextual_inversion.core.inspection.contact_sheet import Row, contact_sheet
from contextual_inversion.core.inspection.world.world_evaluation import as_training_images, draw, score
from contextual_inversion.core.models.diffusers_adapter import DiffusersModel
from contextual_inversion.core.models.lora import to_lora
from contextual_inversion.core.models.low_rank import LowRankDelta, hooked, text_layers
from contextual_inversion.core.models.tiny import load_tiny
from contextual_inversion.core.world.concepts import CONCEPTS, concept_scenes
from contextual_inversion.core.world.prompts import EvaluationPrompt, evaluation_prompts
from contextual_inversion.core.world.render import concept_images, render

CASTLE = CONCEPTS["castle"]
PROMPTS = [prompt for prompt in evaluation_prompts(without=CASTLE.background) if prompt.second is None][:16]


def pictures_that(prompts: list[EvaluationPrompt], background: str | None = None, name: str = "castle") -> np.ndarray:
    """Renders of a concept that obey `prompts`, or that all show `background`."""
    [scene] = concept_scenes(name, 1, seed=5)
    wanted = [
        replace(scene, background=background or prompt.background, style=prompt.style or "photo", seed=index)
        for index, prompt in enumerate(prompts)
    ]
    return np.stack([render(one)[0] for one in wanted])


def test_pictures_that_obey_are_right_and_pictures_of_the_training_place_leak(autoencode) -> None:
    references, _, _ = concept_images("castle")
    good = score(autoencode(pictures_that(PROMPTS)), PROMPTS, CASTLE, references)
    bad = score(autoencode(pictures_that(PROMPTS, CASTLE.background)), PROMPTS, CASTLE, references)
    assert good.background >= 0.9
    assert good.fidelity >= 0.9
    assert good.leak <= 0.1
    assert bad.background <= 0.1
    assert bad.leak >= 0.9
    assert good.recognised >= 0.9
    assert bad.recognised >= 0.9
    assert good.composed >= 0.85
    assert bad.composed <= 0.1
    assert good.similarity > 0.9


def test_another_thing_is_not_the_concept(autoencode) -> None:
    references, _, _ = concept_images("castle")
    other = autoencode(pictures_that(PROMPTS, name="moth"))
    found = score(other, PROMPTS, CASTLE, references)
    same = score(autoencode(pictures_that(PROMPTS)), PROMPTS, CASTLE, references)
    assert found.recognised == found.composed == 0
    assert found.fidelity >= 0.9  # places are as asked: the failure is the subject's alone
    assert found.similarity < same.similarity - 0.1


def test_pictures_that_were_read_are_not_read_again(autoencode, judge, monkeypatch) -> None:
    references, _, _ = concept_images("castle")
    pictures = autoencode(pictures_that(PROMPTS))
    verdicts = judge.read(pictures)
    whole, seen, read = score(pictures, PROMPTS, CASTLE, references, judge=judge), [], judge.read
    monkeypatch.setattr(judge, "read", lambda images: seen.append(len(images)) or read(images))
    told = score(pictures, PROMPTS, CASTLE, references, judge=judge, verdicts=verdicts)
    assert repr(told) == repr(whole)  # what no prompt asks for is NaN, which equals nothing
    assert seen == [len(references)]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_picture_depends_on_its_prompt_and_seed_alone(eta: float) -> None:
    model = DiffusersModel.from_tiny(load_tiny())
    templates = ["a photo of a {} in the snow", "a photo of a {} on lava", "a {} at night"]
    together = draw(model, templates, [3, 4, 5], words="house", steps=2, eta=eta)
    alone = draw(model, templates[1:2], [4], words="house", steps=2, eta=eta)
    # Bytes: batched and single convolutions may round differently by less than one grey level.
    assert np.abs(together[1].astype(int) - alone[0].astype(int)).max() <= 1
    assert np.abs(together[0].astype(int) - together[1].astype(int)).max() > 10


def test_a_concept_draws_with_all_that_it_holds_and_leaves_the_model_as_it_was() -> None:
    model = DiffusersModel.from_tiny(load_tiny())
    vectors = {"clip_l": torch.randn(2, 128, generator=torch.Generator().manual_seed(0))}
    layer = next(name for name in model.linear_layers() if name.endswith("attn2.to_v"))
    delta = LowRankDelta.initial(model.linear_layers()[layer], 2)
    delta = LowRankDelta(delta.a.detach(), torch.ones_like(delta.b))
    slots = {"clip_l": vectors["clip_l"].expand(len(model.cross_attention_layers()), -1, -1)}
    word = Concept("word", "house", vectors)

    def picture(**slot: object) -> np.ndarray:
        return draw(model, ["a photo of a {}"], [1], steps=2, **slot).astype(int)

    bare = picture(vectors=vectors)
    assert np.array_equal(picture(concept=word), bare)
    assert np.abs(picture(concept=replace(word, layer_vectors=slots)) - bare).max() <= 1
    changed = picture(concept=replace(word, lora=to_lora(model, {layer: delta})))
    assert np.abs(changed - bare).max() > 10
    assert np.array_equal(picture(vectors=vectors), bare)


def test_a_lora_that_begins_later_leaves_the_first_steps_to_the_word() -> None:
    """At 0 all steps have it and at 1 none; between, the passes before it are those of the bare word."""
    model = DiffusersModel.from_tiny(load_tiny())
    vectors = {"clip_l": torch.randn(2, 128, generator=torch.Generator().manual_seed(0))}
    layer = next(name for name in model.linear_layers() if name.endswith("attn2.to_v"))
    text = next(iter(text_layers(model)))
    first = next(name for name in model.linear_layers() if name.endswith("attn1.to_q"))
    given = {name: LowRankDelta.initial(part, 2) for name, part in
             {layer: model.linear_layers()[layer], text: text_layers(model)[text]}.items()}  # fmt: skip
    deltas = {name: LowRankDelta(one.a.detach(), torch.ones_like(one.b)) for name, one in given.items()}
    word = Concept("word", "house", vectors)
    both, of_text = (
        replace(word, lora=to_lora(model, {name: deltas[name] for name in names})) for names in ((layer, text), (text,))
    )
    passes: list[torch.Tensor] = []

    def picture(concept: Concept, start: float) -> np.ndarray:
        passes.clear()
        with hooked(model.linear_layers()[first], lambda module, inputs, output: passes.append(output)):
            return draw(model, ["a photo of a {}"], [1], steps=4, lora_start=start, concept=concept).astype(int)

    whole, without = picture(both, 0.0), picture(of_text, 0.0)
    bare = [one.clone() for one in passes]
    assert np.array_equal(picture(both, 1.0), without)  # but for the text encoder's part, which acts all the time
    assert np.abs(whole - without).max() > 10
    # Of 4 steps, at timesteps 999, 749, 499 and 249, the last two are behind half of the way; a layer before the LoRA's
    # sees in the third pass what the word alone has drawn, and only in the fourth what the LoRA did to it.
    half = picture(both, 0.5)
    assert [torch.equal(*pair) for pair in zip(passes, bare, strict=True)] == [True, True, True, False]
    assert not np.array_equal(half, whole)
    assert np.abs(half - without).max() > 10
    with pytest.raises(ValueError, match=r"not at 1\.5"):
        picture(both, 1.5)


def test_training_images_are_the_same_pixels() -> None:
    pictures, _, _ = concept_images("goblet", n=2)
    images = as_training_images(pictures)
    assert images.dtype == torch.float32
    assert images.shape == pictures.shape
    assert np.array_equal((images * 255).round().to(torch.uint8).numpy(), pictures)


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="one picture for each prompt"):
        score(np.zeros((1, 128, 128, 3), np.uint8), PROMPTS, CASTLE, np.zeros((1, 128, 128, 3), np.uint8))


def test_a_contact_sheet_shows_every_picture_where_it_belongs() -> None:
    red, blue = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet([Row("a", [red, blue]), Row("b", [blue / 255.0], captions=["below"])], ["x", "y"], cell=40)
    colours = sheet.getcolors(sheet.width * sheet.height)
    counts = {colour: count for count, colour in colours}
    assert counts[(255, 0, 0)] == 40 * 40
    assert counts[(0, 0, 255)] == 2 * 40 * 40
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([Row("empty", [])])
