"""The verdict over sim1, sim2 and SKL: what decides it, and what it was worth over the project's own trials."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.core.inspection.diagnosis.diagnose import Diagnosis, PromptFigures, SubjectFigures
from contextual_inversion.core.inspection.diagnosis.report import markdown
from contextual_inversion.core.inspection.diagnosis.verdict import KEEPS, MAY, RISKS, judged, verdicts

RANK = {RISKS: 0, MAY: 1, KEEPS: 2}
REFERENCE = {"sim1": 0.6, "sim2": 0.7, "skl": 9.0, "skl_normalised": 0.8}
BADLY = 0.8
"""Of what prompts ask for, the share that is there: below this a word swallows its prompts."""
figures = st.fixed_dictionaries(
    {"sim1": st.floats(-1, 1), "sim2": st.floats(-1, 1), "skl": st.floats(0, 30), "skl_normalised": st.floats(0, 3)}
)


def test_the_class_word_keeps_its_prompt():
    assert judged(REFERENCE, REFERENCE) == KEEPS


@given(figures, st.floats(0, 1), st.floats(0, 2))
def test_more_meaning_kept_or_more_looked_elsewhere_is_never_worse(word, meaning, elsewhere):
    better = {**word, "sim2": word["sim2"] + meaning, "skl_normalised": word["skl_normalised"] + elsewhere}
    assert RANK[judged(better, REFERENCE)] >= RANK[judged(word, REFERENCE)]


@given(figures)
def test_sim2_alone_condemns_no_word(word):
    alone = {key: word[key] for key in ("sim1", "sim2")}
    assert judged(alone, REFERENCE) in (KEEPS, MAY)
    assert judged({**word, "sim1": -word["sim1"]}, REFERENCE) == judged(word, REFERENCE), "sim1 has no say"


def subject(label: str, **means: float) -> SubjectFigures:
    prompt = PromptFigures("a {} in the snow", "snow", means["sim1"], means["sim2"])
    return SubjectFigures(label, (prompt,), means, (("snow", 1.0),))


def test_every_compared_word_has_a_line_in_the_table():
    given_words = (subject("mine", sim1=0.5, sim2=0.4, skl=1.0, skl_normalised=0.1), subject("other", **REFERENCE))
    found = Diagnosis("mine", "cat", (*given_words, subject("cat (class word)", **REFERENCE)), {})
    mine, other = verdicts(found)
    assert (mine.says, other.says) == (RISKS, KEEPS)
    assert mine.text == (
        "mine is at high risk of swallowing its prompt: its context means something else, and it looks where its "
        "context does. Beside the class word: sim2 0.40 (0.70), SKL 0.10 (0.80), sim1 0.50 (0.60)."
    )
    assert [line for line in markdown(found).splitlines() if line.startswith("Verdict: ")] == [
        f"Verdict: {one.text}" for one in (mine, other)
    ]
    assert "\n" not in mine.text + other.text


@pytest.fixture(scope="module")
def trials(repository) -> list[tuple[str, float]]:
    """(verdict, prompt fidelity) of every trial of docs/claims/first_model whose class word was measured."""
    folder = repository / "docs" / "claims" / "first_model"
    words = json.loads((folder / "class-words.json").read_text())["class_words"]
    found = {}
    for path in sorted(folder.glob("*.json")):
        parts = json.loads(path.read_text()).get("parts", {}).values()
        for trial in (one for part in parts for one in part.get("trials", ())):
            if trial.get("concept") in words and "skl_pixels" in trial:
                ours, theirs = (
                    {"sim1": one["sim1"], "sim2": one["sim2"], "skl_normalised": one["skl_pixels"]}
                    for one in (trial, words[trial["concept"]])
                )
                # The same trial stands in several parts.
                key = (trial["concept"], trial["seed"], *ours.values(), trial["fidelity"])
                found[key] = judged(ours, theirs), trial["fidelity"]
    return list(found.values())


def test_what_a_verdict_was_worth_over_the_trials(repository, trials):
    """As docs/claims_first_model.md says it; a threshold that is moved says something else there."""
    badly = {says: [fidelity < BADLY for verdict, fidelity in trials if verdict == says] for says in RANK}
    share = {says: sum(found) / len(found) for says, found in badly.items()}
    assert share[KEEPS] < share[MAY] / 2
    assert share[MAY] < share[RISKS] / 2
    text = (repository / "docs" / "claims_first_model.md").read_text(encoding="utf-8")
    for says, count in Counter(verdict for verdict, _ in trials).items():
        assert f"| {says} | {count} | {share[says]:.0%} |" in text
