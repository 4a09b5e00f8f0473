"""Rich prompt sets: as many prompts as METHODS.md 2.5 says, each sound, drawn by type and never all written down."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from contextual_inversion.core.networks.contextualizer import PRESETS, ShortEncoder
from contextual_inversion.core.prompt_sets import RICH_SETS, rich_prompts
from contextual_inversion.core.prompts.parse import placeholder_problem
from contextual_inversion.core.prompts.rich import DATA, ListedPrompts, Pattern, with_articles, with_class, words
from contextual_inversion.core.prompts.tokens import tokenize_prompt
from contextual_inversion.core.world.captions import BACKGROUND_PHRASES
from contextual_inversion.core.world.sources import world_prompts

SLOTS = {
    "places": 138,
    "prepositions": 18,
    "colours": 24,
    "objects": 68,
    "styles": 126,
    "pet_verbs": 49,
    "active_verbs": 29,
    "passive_verbs": 29,
    "people": 72,
    "garments": 162,
    "outfits": 14,
    "media": 33,
    "shapes": 18,
    "prefixes": 12,
}
PETS = {"backgrounds": 552, "relations": 29_376, "styles": 378, "interactions": 3_528, "wearings": 4_560}
OBJECTS = {"backgrounds": 552, "relations": 29_376, "styles": 378, "interactions": 4_176, "creatives": 117}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("slot", SLOTS)
def test_slots_have_the_sizes_of_the_methods(slot):
    found = words(slot)
    assert len(found) == SLOTS[slot]
    assert len({word.casefold() for word in found}) == len(found)
    assert all(word == word.strip() and word and "{" not in word for word in found)


def test_every_word_file_is_used_and_read_whole():
    for path in DATA.glob("*.txt"):
        assert "\n".join(words(path.stem)) + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "sizes", "total"), [("pets", PETS, 38_394), ("objects", OBJECTS, 34_599)])
def test_types_and_totals_are_those_of_the_methods(name, sizes, total):
    prompts = rich_prompts(name)
    assert {kind.name: len(kind) for kind in prompts.types} == sizes
    assert len(prompts) == total


@pytest.mark.parametrize("name", RICH_SETS)
def test_every_prompt_is_sound_and_none_comes_twice(name):
    seen = set()
    for kind in rich_prompts(name).types:
        for index in range(len(kind)):
            prompt = kind[index]
            assert placeholder_problem(prompt) is None
            assert "[" not in prompt
            assert "  " not in prompt
            assert prompt not in seen
            seen.add(prompt)
        with pytest.raises(IndexError):
            kind[len(kind)]
        with pytest.raises(IndexError):
            kind[-1]
    assert len(seen) == len(rich_prompts(name))


def test_articles_fit_what_follows():
    every = " . ".join(
        kind[index] for name in RICH_SETS for kind in rich_prompts(name).types for index in range(len(kind))
    )
    assert not re.search(r"\ba (?=[aeio])(?!one)", every)
    assert not re.search(r"\ban (?![aeiou])", every)
    assert with_articles("a orange cap near a umbrella, a one-eyed a unicorn") == (
        "an orange cap near an umbrella, a one-eyed a unicorn"
    )


def test_types_come_up_equally_often_and_prompts_uniformly_within_a_type():
    prompts = rich_prompts("objects")
    owner = {kind[index]: kind.name for kind in prompts.types for index in range(len(kind))}
    draws = [strip(prompt, prompts.prefixes) for prompt in prompts.draw(4000, generator())]
    counts = Counter(owner[prompt] for prompt in draws)
    assert set(counts) == set(OBJECTS)
    assert all(abs(count / 4000 - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5 for count in counts.values())
    creatives = Counter(prompt for prompt in draws if owner[prompt] == "creatives")
    expected = counts["creatives"] / 117
    chi_squared = sum((creatives[prompts.types[-1][i]] - expected) ** 2 / expected for i in range(117))
    assert chi_squared < 116 + 5 * (2 * 116) ** 0.5


def strip(prompt, prefixes):
    for prefix in prefixes:
        prompt = prompt.removeprefix(f"{prefix} ")
    return prompt


def test_only_the_types_that_take_a_prefix_get_one():
    prompts = rich_prompts("pets")
    without = {kind[index] for kind in prompts.types if not kind.prefixed for index in range(len(kind))}
    for prompt in prompts.draw(500, generator(1)):
        assert (prompt in without) == (strip(prompt, prompts.prefixes) == prompt)


def test_the_draw_is_the_generators_alone():
    for source in (rich_prompts("pets"), ListedPrompts(("a {}", "my {}"))):
        assert source.draw(20, generator(3)) == source.draw(20, generator(3))
        assert source.draw(20, generator(3)) != source.draw(20, generator(4))


def test_indices_count_through_the_slots_in_mixed_radix():
    pattern = Pattern("[a] {} [b]", {"a": ("x", "y"), "b": ("1", "2", "3")})
    assert [pattern[i] for i in range(len(pattern))] == ["x {} 1", "x {} 2", "x {} 3", "y {} 1", "y {} 2", "y {} 3"]


@pytest.mark.parametrize("name", RICH_SETS)
def test_no_drawn_prompt_is_longer_than_the_hardest(name):
    prompts = rich_prompts(name)
    longest = max(len(text.split()) for text in prompts.hardest(lambda text: len(text.split())))
    assert all(len(text.split()) <= longest for text in prompts.draw(1500, generator(2)))


@pytest.mark.parametrize("name", ["pets", "objects"])
def test_the_short_contextualizer_reads_every_prompt_beside_a_class_word_of_three(encoder, name):
    short = ShortEncoder(encoder, PRESETS["short"].positions)
    assert len(encoder.tokenize("wooden toy dog")) == 3
    for prompt in rich_prompts(name).hardest(lambda text: len(encoder.tokenize(text))):
        filled = tokenize_prompt(short, with_class(prompt, "wooden toy dog"), rows=1)
        assert len(filled.ids) == 24
        assert filled.eot < 24


def test_the_class_word_follows_the_concept():
    assert with_class("a {} on a beach", "dog") == "a {} dog on a beach"


def test_held_out_backgrounds_of_the_world_are_never_named():
    kept = [name for name in BACKGROUND_PHRASES if name not in ("lava", "snow")]
    prompts = world_prompts(kept)
    every = [kind[index] for kind in prompts.types for index in range(len(kind))]
    for name in ("lava", "snow"):
        assert not any(phrase in prompt for phrase in BACKGROUND_PHRASES[name] for prompt in every)
    assert any("on the grass" in prompt for prompt in every)
    assert len(prompts) < len(world_prompts())
    with pytest.raises(ValueError, match="moon"):
        world_prompts(["moon"])


def test_an_unknown_set_is_an_error_that_lists_the_sets():
    with pytest.raises(ValueError, match=", ".join(RICH_SETS)):
        rich_prompts("plants")
    with pytest.raises(ValueError, match="at least one"):
        ListedPrompts(())
