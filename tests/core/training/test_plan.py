"""A training out of plain choices: what nodes, commands and comparisons share, and what is offered by itself."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from stub_model import StubModel, pictures

from contextual_inversion.cli import train as command
from contextual_inversion.cli.experiments import trials
from contextual_inversion.cli.experiments.claim_parts import every_part
from contextual_inversion.core.concept import Concept
from contextual_inversion.core.models.diffusers_text import DiffusersTextEncoder
from contextual_inversion.core.models.tiny import tiny_tokenizer
from contextual_inversion.core.models.tiny.load import load_part
from contextual_inversion.core.prompts.rich import ListedPrompts
from contextual_inversion.core.training.methods import METHODS, Method, first_stages, second_stages
from contextual_inversion.core.training.plan import Choices, Prior, plan, settings_of
from contextual_inversion.core.training.presets import (
    ADAMW,
    DEMO,
    PRESETS,
    Preset,
    demo_preset,
    first_preset,
    recipes,
    suited_preset,
)
from contextual_inversion.core.training.regularizers.registry import REGULARIZERS, Added, Kind
from contextual_inversion.core.training.regularizers.seam import LossTerm, Terms
from contextual_inversion.core.training.run.events import Finished
from contextual_inversion.core.world.render import concept_images

V = SimpleNamespace(prediction_type="v_prediction")
WIDE, NARROW = (
    SimpleNamespace(text_encoders={"clip_l": SimpleNamespace(width=width)}, schedule=V) for width in (768, 128)
)
PROMPTS = ("a {} in the snow",)
SHORT = {"steps": 1, "batch": 1, "resolution": 64}


class Toy:
    """Vectors cost their squared length."""

    name = "toy"

    def __init__(self, weight=0.25):
        self.weight = weight

    def prepare(self, model, class_word, length):
        pass

    def __call__(self, step):
        return Terms({"toy": LossTerm(sum((one**2).mean() for one in step.copies.values()), self.weight)})

    def state(self):
        return {"name": self.name, "weight": self.weight}


@pytest.fixture
def toys(monkeypatch):
    """A regularizer, a method and a recipe of somebody else: one entry each."""
    kind = Kind("Toy", "Keeps it short.", lambda model, method, **options: Toy(**options), {"weight": 0.25})
    monkeypatch.setitem(REGULARIZERS, "toy", kind)
    monkeypatch.setitem(METHODS, "toy", Method("toy method", "vectors", text_encoder="attention", rank=2))
    monkeypatch.setitem(PRESETS, "Toy recipe", Preset("Toy recipe", "a toy", {"method": "toy", **SHORT}))


def finished(run):
    with run:
        return next(event.concept for event in run if isinstance(event, Finished))


def losses(concept):
    return set(concept.provenance["losses"])


def test_what_is_entered_is_planned_and_trained(toys):
    model = StubModel()
    recipe = suited_preset(WIDE, "toy")
    assert recipe is PRESETS["Toy recipe"] is recipes(["toy"])["Toy recipe"]
    assert "toy" in first_stages().values()
    planned = plan(model, Choices(recipe, "dog", added=[Added("toy", {"weight": 0.5})]))
    assert [one.state() for one in planned.regularizers] == [{"name": "toy", "weight": 0.5}]
    concept = finished(planned.begin(model, pictures()))
    assert losses(concept) == {"diffusion", "toy"}
    assert concept.lora


def test_the_command_trains_with_what_is_entered(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda name, device: StubModel())
    (tmp_path / "dogs").mkdir()
    Image.fromarray(np.full((70, 90, 3), 99, dtype=np.uint8)).save(tmp_path / "dogs" / "a.png")
    keywords = {"class_word": "dog", "preset": "Toy recipe", "also": ("toy:weight=0.5",)}
    made = command.main(tmp_path / "dogs", out=tmp_path / "one", **keywords)
    assert set(made["losses"]) == {"diffusion", "toy"}
    assert made["provenance"]["settings"]["method"] == "toy"
    assert made["provenance"]["regularizers"] == [{"name": "toy", "weight": 0.5}]
    by_method = command.recipe_for(None, "toy", tmp_path)
    assert by_method is PRESETS["Toy recipe"]


@pytest.mark.parametrize("name", ["with-toy", "method-toy", "recipe-toy-recipe"])
def test_the_claims_compare_what_is_entered(toys, name):
    model = trials.demo_model()
    part = every_part()[name](model)
    assert part.name == name
    assert {name for pair in part.pairs for name in pair} <= {arm.name for arm in part.arms}
    assert len({trials.arm_key(arm) for arm in part.arms}) == len(part.arms)
    arm = part.arms[-1]
    images, _, class_word = concept_images("moth", 1, seed=1)
    short = replace(arm, changes={**arm.changes, **SHORT})
    concept = trials.learn(model, short, "moth", class_word, images, 1)
    settings = concept.provenance["settings"]
    assert settings["method"] == ("ti" if name == "with-toy" else "toy")
    assert ("toy" in losses(concept)) == (name == "with-toy")


def test_every_part_is_of_something_and_trains_on_its_own():
    for name, make in every_part().items():
        part = make(NARROW)
        assert part.name == name
        arms = {arm.name: arm for arm in part.arms}
        assert len(arms) == len(part.arms)
        # What a part becomes of a search is held in test_pipelines: before it, all may have the same numbers.
        different = {trials.arm_key(arm) for arm in arms.values()}
        assert part.prepared is not None or len(different) == len(arms)
        assert all(treated != control and {treated, control} <= set(arms) for treated, control in part.pairs)


def test_a_choice_replaces_the_recipes_and_none_leaves_it():
    recipe = PRESETS["CoRe stage 1 (paper)"]
    settings = settings_of(Choices(recipe, "dog", {"steps": 7, "batch": None, "seed": 0}, [Added("core")]))
    assert settings == recipe.settings("dog", steps=7)


@pytest.mark.parametrize(
    ("recipe", "added", "chosen", "rule"),
    [
        ("CoRe stage 1 (paper)", "core", None, "core_window"),
        ("CoRe stage 1 (paper)", "nearest", None, "none"),
        ("CoRe stage 1 (paper)", "nearest", "fixed_mean", "fixed_mean"),
        ("CoRe stage 1 (paper)", "core", "none", "none"),
        ("Fixed norm (DTI-like)", "mlm", None, "dti"),
    ],
)
def test_the_window_stays_where_a_regularizer_keeps_it(recipe, added, chosen, rule):
    choices = Choices(PRESETS[recipe], "dog", added=[Added(added)], norm_mode=chosen)
    assert settings_of(choices).norm_mode == rule


def test_a_word_that_is_gone_on_with_keeps_its_length():
    start = Concept("thing", "dog", {"clip_l": torch.ones(3, 32)})
    assert settings_of(Choices(DEMO, "dog", start=start)).vectors == 3
    assert settings_of(Choices(DEMO, "dog", {"vectors": 2}, start=start)).vectors == 2
    assert settings_of(Choices(DEMO, "dog")).vectors == DEMO.values["vectors"]


@pytest.mark.parametrize("method", METHODS)
def test_mlm_takes_as_many_prompts_as_the_paper_does_with_the_method_or_as_many_as_were_chosen(method):
    """METHODS.md 2.6: each prompt is encoded once a vector with XTI."""
    encoder = DiffusersTextEncoder("clip_l", load_part("text_encoder"), tiny_tokenizer())
    bundled = SimpleNamespace(text_encoders={"clip_l": encoder}, schedule=V)
    own = Added("mlm", {"prompts": ListedPrompts(PROMPTS)})
    assert own.make(bundled, method).batch == (12 if METHODS[method].word in ("layers", "blocks") else 25)
    assert replace(own, options={**own.options, "batch": 25}).make(bundled, method).batch == 25


@pytest.mark.parametrize(("chosen", "seed"), [(None, 7), (0, 0)])
def test_class_pictures_follow_from_the_seed_and_are_as_the_training_pictures(chosen, seed):
    model, recipe = StubModel(), PRESETS["Custom Diffusion (MLM paper)"]
    for weight, expected in ((None, 1.0), (0.5, 0.5)):
        choices = Choices(recipe, "dog", {"seed": 7, "resolution": 64}, prior=Prior(weight, 9, chosen))
        (prior,) = plan(model, choices).regularizers
        state = {"weight": expected, "pictures": 9, "seed": seed, "batch": recipe.values["batch"], "resolution": 64}
        assert {key: prior.state()[key] for key in state} == state
    assert plan(model, Choices(recipe, "dog", prior=Prior(0.0))).regularizers == ()
    with pytest.raises(ValueError, match="changes no weights"):
        plan(model, Choices(DEMO, "dog", prior=Prior(1.0)))


def test_a_method_without_a_recipe_is_named_and_the_bundled_models_recipe_suits_it(monkeypatch):
    monkeypatch.setitem(METHODS, "bare", Method("bare method", "vectors"))
    with pytest.raises(ValueError, match=r"no recipe is for bare method \(bare\): .*Fast"):
        first_preset("bare")
    with pytest.raises(ValueError, match="no recipe is for bare method"):
        suited_preset(WIDE, "bare")
    assert suited_preset(NARROW, "bare").settings("dog").method == "bare"
    for choose in (first_preset, demo_preset):
        with pytest.raises(ValueError, match="unknown method 'nothing'"):
            choose("nothing")


def test_every_method_is_offered_once_and_has_a_recipe():
    assert sorted([*first_stages().values(), *second_stages().values()]) == sorted(METHODS)
    assert {preset.method for preset in PRESETS.values()} == set(METHODS)


def test_a_recipe_without_an_optimizer_takes_adamw_and_another_one_none_of_its_numbers():
    for recipe in recipes().values():
        assert recipe.values["optimizer"] == "AdamW"
        same = {**ADAMW, "weight_decay": recipe.values["optimizer_options"]["weight_decay"]}
        assert recipe.values["optimizer_options"] == same
    assert "optimizer_options" not in Preset("other", "", {"optimizer": "SGD"}).values


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("nothing", "no regularizer 'nothing'; there are core, mlm, nearest"),
        ("nearest:loudness=1", "of nearest can be set weight, norm_weight, neighbours, tau"),
        ("nearest:neighbours=some", "of nearest can be set"),
        ("nearest:neighbours", "of nearest can be set"),
    ],
)
def test_what_cannot_be_added_is_said_before_the_work(said, words):
    with pytest.raises(ValueError, match=words):
        command.parsed(said)


def test_numbers_are_as_whole_as_those_that_they_replace():
    options = command.parsed("nearest:neighbours=5,tau=1").options
    assert options == {"neighbours": 5, "tau": 1.0}
    assert [type(value) for value in options.values()] == [int, float]
    assert command.parsed("nearest") == Added("nearest")
