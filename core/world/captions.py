"""Truthful English for a scene, with much variety: what is said is always so, and not everything is always said."""

from __future__ import annotations

from .scenes import Scene, SecondObject
from .streams import Draws

BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "in the grass", "on a green lawn", "in a meadow"),
    "sand": ("on the sand", "on a beach", "in the desert", "on a sandy beach"),
    "snow": ("in the snow", "on the snow", "on fresh snow", "in a snowy field"),
    "water": ("in the water", "in the sea", "on a lake", "in the blue water"),
    "night": ("in the night sky", "at night", "under the night sky", "in the dark night"),
    "bricks": ("in front of a brick wall", "in front of bricks", "against a brick wall", "on a brick wall"),
    "wood": ("on a wooden table", "on the wooden floor", "on wood", "on a wooden board"),
    "lava": ("on lava", "in the lava", "on glowing lava", "in a volcano"),
}
"""Ways to say where a subject is. The first of each is the plainest."""

OPENINGS: dict[str, tuple[str, ...]] = {
    "photo": (
        "a photo of {}",
        "a photo of {}",
        "a photo of {}",
        "a picture of {}",
        "an image of {}",
        "the photo of {}",
        "a good photo of {}",
        "a close-up photo of {}",
        "a cropped photo of {}",
        "a rendering of {}",
        "a rendition of {}",
        "a depiction of {}",
        "this is {}",
        "there is {}",
        "here is {}",
        "we see {}",
        "{}",
        "{}",
        "{}",
        "{}",
    ),
    "sketch": (
        "a sketch of {}",
        "a drawing of {}",
        "a pencil sketch of {}",
        "a pencil drawing of {}",
        "{}, sketch",
        "{} as a sketch",
    ),
    "pixelated": (
        "a pixelated image of {}",
        "a pixelated photo of {}",
        "pixel art of {}",
        "a pixel art picture of {}",
        "{}, pixel art",
        "{}, pixelated",
    ),
}
"""Ways to begin; those of a style say the style. A photo never claims to be anything else."""

BESIDE = ("next to {}", "beside {}", "near {}", "and {}", "with {} beside it", "together with {}")
PLACE_PHRASES = {"left": ("on the left", "on the left side"), "right": ("on the right", "on the right side")}


def _one_of(rng: Draws, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def with_article(noun_phrase: str, rng: Draws | None = None) -> str:
    """ "a" or "an" before the phrase; with an `rng`, sometimes "the", "one", "my" or "a nice"."""
    if rng is not None and rng.random() < 0.14:
        return _one_of(rng, ("the {}", "one {}", "my {}", "a nice {}", "a cool {}")).format(noun_phrase)
    return ("an " if noun_phrase[0] in "aeio" else "a ") + noun_phrase


def describe_subject(scene: Scene, rng: Draws) -> str:
    """The subject with its colour(s), texture and hat; colour and texture are left out now and then."""
    noun, one, two = scene.subject, scene.colour, scene.second_colour
    say_colour, say_texture = rng.random() < 0.88, rng.random() < 0.85
    tail = ""
    if scene.worn:
        tail = _one_of(rng, (f" with a {scene.worn}", f" wearing a {scene.worn}"))
    if scene.texture == "plain" or not say_texture:
        return (with_article(f"{one} {noun}", rng) if say_colour else with_article(noun, rng)) + tail
    if scene.texture == "two-tone":
        if not say_colour:
            return with_article(_one_of(rng, (f"two-tone {noun}", noun)), rng) + tail
        return with_article(_one_of(rng, (f"{one} and {two} {noun}", f"two-tone {one} and {two} {noun}")), rng) + tail
    marks = {"striped": "stripes", "spotted": "spots"}[scene.texture]
    if not say_colour:
        return with_article(f"{scene.texture} {noun}", rng) + tail
    forms = (
        f"{one} {noun}|with {two} {marks}",
        f"{one} and {two} {scene.texture} {noun}",
        f"{scene.texture} {one} {noun}",
    )
    head, _, extra = _one_of(rng, forms).partition("|")
    if extra and tail:
        return with_article(head, rng) + f" {extra} and{tail.replace(' wearing', '').replace(' with', '')}"
    return with_article(head, rng) + (f" {extra}" if extra else "") + tail


def in_words(noun: str, texture: str, one: str, two: str) -> str:
    """All that captions may say about the look of a subject in two colours, with its article: "a purple and yellow
    striped house".

    Raises ValueError for a plain one.
    """
    if texture == "plain":
        raise ValueError(f"a plain {noun} has one colour")
    colours = f"{one} and {two}"
    return with_article(f"two-tone {colours} {noun}" if texture == "two-tone" else f"{colours} {texture} {noun}")


def describe_second(second: SecondObject, rng: Draws) -> str:
    """The second object; its colour is left out now and then."""
    return with_article(f"{second.colour} {second.shape}" if rng.random() < 0.88 else second.shape)


def caption(scene: Scene, rng: Draws) -> str:
    """One true sentence about `scene`.

    The style is always said when it is not "photo", the subject always; background, colours, texture and place are
    sometimes left out. Raises ValueError for a held-out concept, which no caption may name.
    """
    if scene.concept is not None:
        raise ValueError(f"the held-out concept {scene.concept!r} has no caption")
    subject = describe_subject(scene, rng)
    where = _one_of(rng, BACKGROUND_PHRASES[scene.background]) if rng.random() < 0.93 else ""
    place = ""
    if scene.place in PLACE_PHRASES and rng.random() < 0.5:
        place = _one_of(rng, PLACE_PHRASES[scene.place])
    other = _one_of(rng, BESIDE).format(describe_second(scene.second, rng)) if scene.second else ""
    opening = _one_of(rng, OPENINGS[scene.style])
    form = rng.random()
    if where and form < 0.10:
        return ", ".join((where, opening.format(" ".join(filter(None, (subject, place, other))))))
    if where and other and form < 0.25:
        return opening.format(" ".join((subject, where, other)))
    if where and not place and form < 0.33 and scene.style == "photo":
        verb = _one_of(rng, ("is", "sits", "stands", "can be seen"))
        if other and other.startswith("and "):
            return f"{subject} {other} can be seen {where}"
        return " ".join(filter(None, (subject, verb, where, other)))
    return opening.format(" ".join(filter(None, (subject, place, other, where))))


def prompt(noun_phrase: str, background: str, rng: Draws | None = None) -> str:
    """A short prompt, "a photo of a red ball on the grass"; `rng` picks among the background's phrases."""
    phrases = BACKGROUND_PHRASES[background]
    return f"a photo of {with_article(noun_phrase)} {phrases[0] if rng is None else _one_of(rng, phrases)}"
