"""The front end's arithmetic against NumPy, run in the browser."""

import json
import math

import numpy as np
import pytest

REPORT = {
    "version": 1,
    "images": 2,
    "bins": [{"from": 0.0, "to": 0.5}, {"from": 0.5, "to": 1.0}],
    "groups": [
        {"label": "6 x 8, down", "size": "6 x 8", "depth": 0.0, "height": 6, "width": 8},
        {"label": "3 x 4, up", "size": "3 x 4", "depth": 1.0, "height": 3, "width": 4},
        {"label": "3 x 4, middle", "size": "3 x 4", "depth": 0.5, "height": 3, "width": 4},
    ],
    "words": [
        {"text": text, "kind": "word", "positions": [i]} for i, text in enumerate(["a", "cat", "on", "a", "mat"])
    ],
    "tile": {"height": 6, "width": 8, "columns": 7},
}
SHAPE = (REPORT["images"], len(REPORT["bins"]), len(REPORT["groups"]), len(REPORT["words"]))


@pytest.fixture(scope="module")
def page(browser, static):
    address, folder = static
    (folder / "empty.html").write_text("<!doctype html><title>numbers</title>")
    page = browser()
    page.open(f"{address}/empty.html")
    names = {
        "maps": "attention/maps",
        "colours": "attention/colours",
        "state": "attention/state",
        "tags": "attention/tags",
        "curves": "training/curves",
        "sentence": "training/sentence",
        "ending": "training/ending",
    }
    loads = "".join(f"window.{name} = await import('/js/{path}.js');" for name, path in names.items())
    page.run(f"(async () => {{ {loads} window.report = {json.dumps(REPORT)}; }})()")
    yield page
    assert page.errors == []


def linear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizing by interpolation between the centres of cells, one axis after the other."""
    for axis, size in ((0, height), (1, width)):
        old = values.shape[axis]
        centres = (np.arange(size) + 0.5) * old / size - 0.5
        values = np.apply_along_axis(lambda row, at=centres, n=old: np.interp(at, np.arange(n), row), axis, values)
    return values


def test_a_tile_is_where_row_major_order_puts_it(page):
    every = np.stack(np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE), -1).tolist()
    assert page.run(f"{json.dumps(every)}.map((at) => maps.tileIndex(report, ...at))") == list(range(len(every)))
    assert page.run("maps.tileCount(report)") == len(every)


# By depth the groups are 0, 2, 1; those of 3 x 4 are 2, 1.
LAYERS = [
    (None, None, [0, 1, 2]),
    (None, [0, 0], [0]),
    (None, [1, 2], [2, 1]),
    ("3 x 4", None, [2, 1]),
    ("3 x 4", [1, 1], [1]),
    ("6 x 8", [0, 2], [0]),
]


@pytest.mark.parametrize(("size", "layers", "groups"), LAYERS)
@pytest.mark.parametrize("steps", [None, [1, 1]])
def test_a_map_is_the_mean_over_the_chosen_layers_and_steps(page, size, layers, groups, steps):
    random = np.random.default_rng(0)
    rows = math.ceil(np.prod(SHAPE) / REPORT["tile"]["columns"])
    atlas = random.integers(0, 256, (rows * 6, REPORT["tile"]["columns"] * 8))
    scale = random.uniform(0.01, 1, int(np.prod(SHAPE)))
    image, word = 1, 3
    maps = []
    for group in groups:
        for step in [0, 1] if steps is None else [1]:
            index = np.ravel_multi_index((image, step, group, word), SHAPE)
            row, column = divmod(int(index), REPORT["tile"]["columns"])
            height, width = REPORT["groups"][group]["height"], REPORT["groups"][group]["width"]
            maps.append(atlas[row * 6 : row * 6 + height, column * 8 : column * 8 + width] / 255 * scale[index])
    largest = np.max([one.shape for one in maps], 0)
    wanted = np.mean([linear(one, *largest) for one in maps], 0)
    choice = json.dumps({"image": image, "size": size, "layers": layers, "steps": steps})
    given = page.run(
        f"(() => {{ const whole = {{ ...report, scale: {json.dumps(scale.tolist())} }};"
        f"const atlas = new maps.Atlas(whole, Uint8Array.from({json.dumps(atlas.ravel().tolist())}), {atlas.shape[1]});"
        f"const map = atlas.map({word}, {choice}); return [map.height, map.width, [...map.data]]; }})()"
    )
    assert given[:2] == list(wanted.shape)
    np.testing.assert_allclose(given[2], wanted.ravel(), rtol=1e-5)


def test_layers_have_names_of_their_own(page):
    assert page.run("maps.sizes(report.groups)") == ["6 x 8", "3 x 4"]
    assert page.run("maps.layerNames(report.groups)") == ["6 x 8, down", "3 x 4, middle", "3 x 4, up"]
    assert page.run("maps.layerNames(report.groups, '3 x 4')") == ["middle", "up"]
    twice = page.run("maps.layerNames([...report.groups, ...report.groups], '6 x 8')")
    assert twice == ["down 1", "down 2"]


def test_the_overlay_covers_most_where_the_map_is_strongest(page):
    values = np.linspace(0, 1, 11)
    given = page.run(f"[...colours.blend([{{ data: {values.tolist()}, rgb: [230, 159, 0] }}], 11)]")
    colour, alpha = np.reshape(given, (11, 4))[:, :3], np.reshape(given, (11, 4))[:, 3]
    red = colour[:, 0] * alpha
    assert (np.diff(red) > 0).all(), "more attention, more of the colour"
    assert colour[-1].tolist() == [230, 159, 0]
    assert colour[0].tolist() == [0, 0, 0], "only shade where there is none"
    mixed = page.run("[...colours.blend([{ data: [0.5], rgb: [200, 0, 0] }, { data: [0.5], rgb: [0, 0, 200] }], 1)]")
    assert mixed[0] == mixed[2] > 0 == mixed[1]


def test_text_on_a_pin_can_be_read(page):
    for rgb, text in page.run("colours.PALETTE.map(({ rgb }) => [rgb, colours.readableOn(rgb)])"):
        light, dark = sorted((luminance(rgb), luminance([255] * 3 if text == "#fff" else [0] * 3)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, "WCAG AA"


def luminance(rgb: list[int]) -> float:
    parts = [value / 255 for value in rgb]
    linear_parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear_parts))


def test_pins_follow_their_word_through_another_prompt(page):
    words = "report.words"
    assert page.run(f"{words}.map((_, i) => state.indexOf({words}, state.nameOf({words}, i)))") == [0, 1, 2, 3, 4]
    changed = json.dumps([{"text": text} for text in ["a", "dog", "and", "a", "cat"]])
    assert page.run(f"state.indexOf({changed}, {{ text: 'cat', nth: 0 }})") == 4
    assert page.run(f"state.indexOf({changed}, {{ text: 'mat', nth: 0 }})") == -1


def test_pinned_words_are_named_as_mask_words_knows_them(page):
    """There a word is known by its text between commas, so that the second of two equal ones has no name."""
    words = json.dumps([{"text": text, "kind": "word"} for text in ["A", "cat", ",", "a", "mat"]])
    ends = json.dumps([{"text": "start", "kind": "special"}, {"text": "cat", "kind": "word"}])
    assert page.run(f"state.maskText({words}, [4, 1])") == "cat, mat", "in the prompt's order"
    assert page.run(f"state.maskText({words}, [0, 2, 3])") == "A"
    assert page.run(f"state.maskText({ends}, [0, 1])") == "cat"
    assert page.run(f"state.maskText({words}, [])") == ""


@pytest.mark.parametrize(
    "kept", ["null", "7", "{ pins: 3, size: 4, layers: ['a', 1], image: -2, common: 'yes' }", "{ pins: [null] }"]
)
def test_a_broken_choice_becomes_the_default(page, kept):
    nothing = {"pins": [], "size": None, "layers": None, "steps": None, "image": 0, "common": False, "special": False}
    assert page.run(f"state.restored({kept})") == nothing


def test_news_of_a_training_join(page):
    joined = page.run(
        "curves.joined({ steps: [1, 2], losses: { a: [1, 2] } }, { steps: [3], losses: { a: [3], b: [9] } })"
    )
    assert joined == {"steps": [1, 2, 3], "losses": {"a": [1, 2, 3], "b": [None, None, 9]}}
    long = page.run(
        "(() => { let all = { steps: [], losses: {} }; for (let i = 0; i < 5000; i++)"
        "all = curves.joined(all, { steps: [i + 1], losses: { a: [i % 7] } }); return all; })()"
    )
    assert len(long["steps"]) == len(long["losses"]["a"]) <= 1200
    assert long["steps"][-1] == 5000
    assert long["steps"] == sorted(long["steps"])


def test_a_constant_is_its_own_running_average(page):
    assert page.run("curves.smoothed([null, 2, 2, null, 2])") == pytest.approx([None, 2, 2, 2, 2])


@pytest.mark.parametrize("logarithmic", ["true", "false"])
def test_a_scale_puts_its_ends_at_0_and_1_and_its_marks_between(page, logarithmic):
    scale = f"curves.scaleOf([[0.003, null, 2], [40]], {logarithmic})"
    ends = page.run(
        f"(() => {{ const s = {scale}; return [s.place(s.low), s.place(s.high), ...s.marks.map(s.place)]; }})()"
    )
    assert ends[:2] == pytest.approx([0, 1])
    assert len(ends) >= 4
    assert all(0 <= mark <= 1.001 for mark in ends)
    assert page.run(f"curves.scaleOf([[null]], {logarithmic})") is None


def test_names_over_a_picture_stay_in_it_and_apart(page):
    random = np.random.default_rng(0)
    width, height, most = 320, 300, 6
    for _ in range(50):
        sizes = np.stack([random.integers(20, 150, most), np.full(most, 18)], 1)
        # Many words look at the same place.
        places = random.integers(0, [width, height], (3, 2))[random.integers(0, 3, most)]
        tags = [
            dict(zip(("x", "y", "width", "height"), (*at, *size), strict=True))
            for at, size in zip(places.tolist(), sizes.tolist(), strict=True)
        ]
        given = page.run(f"tags.placed({json.dumps(tags)}, {{ width: {width}, height: {height} }})")
        corners = np.array([[one["left"], one["top"]] for one in given])
        assert (corners >= 0).all()
        assert (corners + sizes <= [width, height]).all()
        for one in range(most):
            apart = (corners[one] + sizes[one] <= corners[:one]) | (corners[:one] + sizes[:one] <= corners[one])
            assert apart.any(1).all(), "no name lies on another"
    alone = page.run("tags.placed([{ x: 100, y: 100, width: 40, height: 18 }], { width: 320, height: 300 })")
    assert alone == [{"left": 80, "top": 78}], "just above its place"
    at_the_top = page.run("tags.placed([{ x: 100, y: 5, width: 40, height: 18 }], { width: 320, height: 300 })")
    assert at_the_top[0]["top"] == 9, "below it where there is no room above"


def test_a_rate_is_said_as_it_is(page):
    """As numbers the words are the rate, to three digits, and zeros hide none."""
    rates = [float(f"{m}e{e}") for m in (1, 1.5, 2.25, 5, 9.99) for e in range(-9, 1)]
    said = page.run(f"{json.dumps(rates)}.map(sentence.rateInWords)")
    assert [float(one) for one in said] == rates
    assert page.run("[0.01, 5e-6, 0.004, 0.3].map(sentence.rateInWords)") == ["1e-2", "5e-6", "4e-3", "0.3"]


def test_an_estimate_is_as_fine_as_it_can_be(page):
    """It is off by less than a tenth, or by half a second, and never nothing."""
    units = {"h": 3600, "min": 60, "s": 1}
    for seconds in (0.1, 0.6, 3.4, 7.7, 12, 58, 61, 333, 599, 601, 3500, 3700, 40_000):
        words = page.run(f"sentence.roughly({seconds})").removeprefix("about ").split()
        total = sum(int(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
        assert total > 0
        assert abs(total - seconds) <= max(0.9, 0.25 * min(seconds, 10), 0.1 * seconds), (seconds, words)


PLAN = {
    "recipe": "Demo model", "steps": 200, "rate": 1e-2, "batch": 4, "vectors": 3, "each": "", "weight_rate": None,
    "rank": None, "class_pictures": 0, "pictures": 5, "connected": [], "seconds": 51.3,
}  # fmt: skip
SENTENCES = {
    "Demo model recipe: 200 steps, rate 1e-2, batch 4, 3 vectors; about 50 s": {},
    "10 steps, rate 5e-4, batch 6": {
        "recipe": "", "steps": 10, "rate": 5e-4, "batch": 6, "vectors": None, "seconds": None,
    },
    "XTI (P+) recipe: 1 step, rate 5e-3, batch 4, 1 vector for every layer; about 1 min": {
        "recipe": "XTI (P+)", "steps": 1, "rate": 5e-3, "vectors": 1, "each": "layer", "seconds": 61,
    },
    "Demo model recipe: steps as connected, rate 1e-2, weights at 1e-3, batch 4, whole weights, "
    "pictures of the class first: 100": {
        "steps": None, "connected": ["steps"], "weight_rate": 1e-3, "vectors": None, "rank": 0, "class_pictures": 100,
        "seconds": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("expected", SENTENCES)
def test_the_sentence_of_a_plan(page, expected):
    plan = PLAN | SENTENCES[expected]
    assert page.run(f"sentence.sentence({json.dumps(plan)})") == expected
    assert page.run(f"sentence.outlookInWords({json.dumps({'plan': plan})})") == expected


def test_where_the_model_is_not_known_both_are_said(page):
    plans = {
        "demo": PLAN | {"seconds": None},
        "stable diffusion": PLAN | {"recipe": "CoRe stage 1 (paper)", "steps": 300},
    }
    said = page.run(f"sentence.outlookInWords({json.dumps({'plans': plans})})")
    assert said.startswith("It depends on the model. Stable Diffusion: CoRe stage 1 (paper) recipe: 300 steps")
    assert "The demo model: Demo model recipe: 200 steps" in said
    assert page.run("sentence.outlookInWords({ refused: 'no' })") == "Cannot run so: no"


def test_errors_keep_their_words_and_lose_comfyuis_hints(page):
    memory = "Out of memory: switch on gradient_checkpointing, or take a smaller batch or resolution."
    for given, said in (
        ({"exception_message": "what went wrong\n\n\nTIPS: other", "exception_type": "ValueError"}, "what went wrong"),
        ({"exception_message": "two\nlines", "exception_type": "ValueError"}, "two\nlines"),
        ({"exception_message": "\n", "exception_type": "KeyError"}, "KeyError"),
        ({"exception_message": "Allocation on device", "exception_type": "torch.OutOfMemoryError"}, memory),
        ({"exception_message": "CUDA error: out of memory", "exception_type": "RuntimeError"}, memory),
        ({"exception_message": "the pool ran out of memory words", "exception_type": "ValueError"}, None),
    ):
        assert page.run(f"ending.failure({json.dumps(given)})") == (said or given["exception_message"])
