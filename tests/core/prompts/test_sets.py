"""The built-in sets: balanced as METHODS.md 1.8 counts, apart from what is evaluated, short enough, in their world."""

import re

import pytest

from contextual_inversion.core.prompts.parse import prompts_by_category
from contextual_inversion.core.prompts.sets import (
    DATA,
    EVALUATION_SETS,
    built_in_set,
    built_in_sets,
    prompt_set_from_file,
    prompt_set_from_text,
)

ALL_SETS = (*built_in_sets(), *EVALUATION_SETS)

# METHODS.md 1.8: the official files have 97 and 103 lines; ours have 100 each, rounded by largest remainder.
OFFICIAL = {
    "animate": {
        "background": 17, "action": 19, "outfit": 15, "style": 17, "character": 12, "composition": 13, "colour": 4
    },
    "inanimate": {"background": 40, "colour": 11, "style": 31, "composition": 21},
}  # fmt: skip


def categories_of(name):
    return prompts_by_category((DATA / f"{name}.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_balance_is_that_of_the_official_sets(name):
    counts = {category: len(prompts) for category, prompts in categories_of(name).items()}
    assert counts == apportioned(OFFICIAL[name], 100)


def apportioned(counts, total):
    """Largest remainders."""
    shares = {key: value * total / sum(counts.values()) for key, value in counts.items()}
    result = {key: int(share) for key, share in shares.items()}
    by_remainder = sorted(shares, key=lambda key: result[key] - shares[key])
    for key in by_remainder[: total - sum(result.values())]:
        result[key] += 1
    return result


@pytest.mark.parametrize("name", ALL_SETS)
def test_every_prompt_is_filed_once_and_fits(name, encoder):
    prompts = built_in_set(name).prompts
    categories = categories_of(name)
    assert "" not in categories
    assert [prompt for group in categories.values() for prompt in group] == list(prompts)
    again = prompt_set_from_text("\n".join(prompts), encoders=[encoder], rows=16, class_word="toy robot")
    assert again.prompts == prompts


@pytest.mark.parametrize("name", ALL_SETS)
def test_prompts_are_plainly_written(name):
    for prompt in built_in_set(name).prompts:
        assert not re.search(r"\s{2}|\s[,.;]|[.,;]$|[^\S ]", prompt), prompt
        assert re.fullmatch(r"[\w{}',\- ]+", prompt), prompt
        assert not re.search(r"\b(\w+) \1\b", prompt), prompt
        assert not re.search(r"\ba [aeiou]|\ban [^aeiouAEIOU]", prompt), prompt


@pytest.mark.parametrize("name", EVALUATION_SETS)
def test_evaluation_prompts_are_twenty_and_never_regularised_with(name):
    evaluation = built_in_set(name).prompts
    assert len(evaluation) == 20
    assert not set(evaluation) & {prompt for other in built_in_sets() for prompt in built_in_set(other).prompts}


@pytest.mark.parametrize("name", ["animate", "inanimate"])
def test_evaluation_subjects_do_not_occur_in_the_regularisation_sets(name):
    places = ["Times Square", "marketplace", "stone wall", "Eiffel", "wheat", "Renaissance", "Picasso", "Baroque",
              "Starry Night", "Expressionis", "superhero", "fairy-tale", "ruins", "floating", "buried"]  # fmt: skip
    evaluated = " ".join(prompt for other in EVALUATION_SETS for prompt in built_in_set(other).prompts)
    text = " ".join(built_in_set(name).prompts).casefold()
    for place in places:
        assert place in evaluated
        assert place.casefold() not in text


def test_sets_say_where_they_came_from(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# style\na {} in oils\n", encoding="utf-8")
    mine = prompt_set_from_file(path)
    assert (mine.name, mine.prompts, mine.source, len(mine)) == ("mine", ("a {} in oils",), "mine.txt", 1)
    assert built_in_set("animate").source == "built-in set animate"
    with pytest.raises(ValueError, match=r"no built-in prompt set.*animate"):
        built_in_set("../secrets")


def test_the_world_set_keeps_out_what_is_evaluated():
    """No background held out for evaluation, none of its second objects, and no evaluation prompt, in any style."""
    from contextual_inversion.core.world.captions import BACKGROUND_PHRASES
    from contextual_inversion.core.world.prompts import (
        EVALUATION_BACKGROUNDS,
        REGULARIZATION_BACKGROUNDS,
        evaluation_prompts,
    )
    from contextual_inversion.core.world.scenes import COLOURS

    prompts = built_in_set("concept_world").prompts
    practised = [phrase for background in REGULARIZATION_BACKGROUNDS for phrase in BACKGROUND_PHRASES[background]]
    held_out = [phrase for background in EVALUATION_BACKGROUNDS for phrase in BACKGROUND_PHRASES[background]]
    elsewhere = " ".join((*practised, *COLOURS, "a photo of"))  # "the blue water", "in front of bricks"
    words = set(" ".join(held_out).split()) - set(elsewhere.split())
    assert {"water", "night", "brick", "bricks", "lava"} <= words
    for prompt in prompts:
        assert any(prompt.endswith(phrase) for phrase in practised), prompt
        assert not any(phrase in prompt for phrase in held_out), prompt
        assert not words & set(prompt.split()), prompt
    assert {phrase for phrase in practised if any(p.endswith(phrase) for p in prompts)} == set(practised)
    evaluation = evaluation_prompts()
    assert any(prompt.held_out for prompt in evaluation)
    assert not {prompt.text for prompt in evaluation if prompt.held_out} & set(prompts)
    for prompt in evaluation:
        if prompt.second is not None:
            assert not any(prompt.second.shape in other for other in prompts)


def test_the_world_set_uses_only_words_of_the_world():
    from contextual_inversion.core.world import captions, scenes

    known = " ".join(phrase for phrases in captions.BACKGROUND_PHRASES.values() for phrase in phrases)
    known += " " + " ".join(opening for openings in captions.OPENINGS.values() for opening in openings)
    known += " " + " ".join((*captions.BESIDE, *captions.PLACE_PHRASES["left"], *captions.PLACE_PHRASES["right"]))
    known += " a an " + " ".join((*scenes.COLOURS, *scenes.SHAPES))
    for prompt in built_in_set("concept_world").prompts:
        assert set(prompt.split()) <= set(known.split()), prompt
