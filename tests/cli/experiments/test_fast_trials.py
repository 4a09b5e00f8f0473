"""What is reached in a fifth of plain textual inversion's time, and arms that are no single training."""

import torch

from contextual_inversion.cli.experiments import fast_trials
from contextual_inversion.cli.experiments.fast_trials import SECOND, equal_seconds_table, two_stages
from contextual_inversion.cli.experiments.trials import Arm, demo_model
from contextual_inversion.core.world.render import concept_images


def trial(method, *course):
    keys = ("step", "seconds", "composed")
    rest = {"fidelity": 0.5, "recognised": 0.5, "similarity": 0.5}
    return {"method": method, "course": [{**rest, **dict(zip(keys, at, strict=True))} for at in course]}


def test_a_method_is_judged_within_a_fifth_of_the_time_that_plain_inversion_needs_for_its_best():
    arms = [Arm("ti", "plain TI"), Arm("quick", "quick"), Arm("late", "late")]
    trials = [
        trial("ti", (100, 10, 0.2), (200, 20, 0.4), (300, 30, 0.3)),
        trial("quick", (10, 3, 0.4), (20, 5, 0.5)),
        trial("late", (10, 5, 0.3)),
    ]
    _, _, plain, quick, late, *_ = equal_seconds_table(arms, trials)
    assert plain == "| plain TI | 20.0 | nothing yet | 0.400 (200 steps, 20.0 s) |"
    assert quick == "| quick | 3.0 | 0.400 (10 steps, 3.0 s) | 0.500 (20 steps, 5.0 s) |"
    assert late == "| late | never | nothing yet | 0.300 (10 steps, 5.0 s) |"


def test_the_second_stage_goes_on_with_the_word_of_the_first():
    model, (references, _, class_word) = demo_model(), concept_images("moth", 1, seed=1)
    arm = two_stages(model, 2, 1, 1e-3)
    assert arm.changes[SECOND]["steps"] == 1
    (first, word), (second, refined) = fast_trials._learned(model, arm, "moth", class_word, references, 1)
    assert (first, second) == (2, 3)
    assert word.lora is None
    assert any(float(value.abs().max()) > 0 for key, value in refined.lora.items() if key.endswith("up.weight"))
    for name, vectors in word.vectors.items():
        assert torch.equal(vectors, refined.vectors[name])
