"""Laws of the search: the design stays within its space, and a round keeps the best of those it judged alike."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextual_inversion.cli.experiments.halving import Choice, Range, design, halved, rounds

SPACE = {"rate": Range(1e-3, 1.0), "rank": Choice((2, 4, 8)), "steps": Range(10, 200, whole=True)}
plans = st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 60), st.integers(2, 5)).filter(
    lambda one: one[2] <= one[1]
)


@given(st.integers(1, 40), st.integers(0, 1000))
def test_a_design_is_spread_over_its_space_and_begins_alike_however_long_it_is(count, seed):
    found = design(SPACE, count, seed)
    assert len(found) == count
    assert design(SPACE, count + 5, seed)[:count] == found
    for one in found:
        assert 1e-3 <= one["rate"] <= 1.0
        assert one["rank"] in (2, 4, 8)
        assert one["steps"] in range(10, 201)
    if count >= 8:  # a share of points in each half of every axis, which no eight independent draws promise
        assert 0 < sum(one["rate"] < 1e-3**0.5 for one in found[:8]) < 8


def test_an_axis_goes_from_end_to_end():
    assert [SPACE["rate"].at(share) for share in (0.0, 0.5, 1.0)] == [1e-3, 0.0316, 1.0]
    assert [SPACE["rank"].at(share) for share in (0.0, 0.34, 0.99, 1.0)] == [2, 4, 8, 8]
    assert design(SPACE, 0, 0) == []
    with pytest.raises(ValueError, match="nothing to choose"):
        design({}, 3, 0)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_around_a_value_is_a_part_of_its_axis_that_has_it(where, share):
    for axis in SPACE.values():
        value = axis.at(where)
        near = axis.around(value)
        if isinstance(axis, Range):
            assert axis.low <= near.low <= value <= near.high <= axis.high
            rounding = 0.5 if axis.whole else value / 100
            assert value / 2 - rounding <= near.at(share) <= value * 2 + rounding
        else:
            at = axis.values.index(value)
            assert set(near.values) == {axis.values[one] for one in (at - 1, at, at + 1) if 0 <= one < 3}
    for axis, outside in ((SPACE["rate"], 2.0), (SPACE["rank"], 3)):
        with pytest.raises(ValueError, match=r"\d"):
            axis.around(outside)


@given(plans)
def test_rounds_see_more_cells_of_fewer_candidates_until_one_is_left(given_plan):
    candidates, cells, first, factor = given_plan
    found = rounds(*given_plan)
    assert (found[0].candidates, found[0].cells) == (candidates, first)
    for one, after in pairwise(found):
        assert after.candidates == one.kept < one.candidates
        assert after.cells == min(cells, one.cells * factor) > one.cells
    assert found[-1].kept == 1
    assert found[-1].cells == cells or found[-1].candidates == 1


@pytest.mark.parametrize("wrong", [(0, 4, 2, 2), (3, 4, 0, 2), (3, 4, 5, 2), (3, 4, 2, 1)])
def test_a_plan_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one candidate"):
        rounds(*wrong)


@given(plans, st.data())
def test_a_round_keeps_the_best_and_judges_all_who_are_left_on_the_same_cells(given_plan, data):
    candidates, cells, _, _ = given_plan
    numbers = st.lists(
        st.lists(st.integers(0, 3), min_size=cells, max_size=cells), min_size=candidates, max_size=candidates
    )
    shown = {"a": data.draw(numbers), "b": data.draw(numbers)}
    seen = []

    def judged(left, count):
        seen.append((dict(left), count))
        return {(key, i): (sum(shown[key][i][:count]) / count,) for key, those in left.items() for i in those}

    plan = rounds(*given_plan)
    told = halved({"a": candidates, "b": candidates}, plan, judged)
    assert [count for _, count in seen] == [one.cells for one in plan]
    for key, found in told.items():
        left = list(range(candidates))
        for one, of_plan, (asked, _) in zip(found, plan, seen, strict=True):
            assert sorted(asked[key]) == sorted(left) == sorted(one["ranked"])
            means = {i: sum(shown[key][i][: one["cells"]]) for i in left}
            assert one["kept"] == one["ranked"][: of_plan.kept]
            dropped = [means[i] for i in left if i not in one["kept"]]
            assert min(means[i] for i in one["kept"]) >= max(dropped, default=0)
            left = one["kept"]
        # Of those that were there to the end nobody is better on all that was seen.
        last = {i: sum(shown[key][i][: found[-1]["cells"]]) for i in found[-1]["ranked"]}
        assert last[left[0]] == max(last.values())


@given(plans, st.data())
def test_without_noise_the_best_of_all_wins_and_the_earlier_one_of_equals(given_plan, data):
    candidates = given_plan[0]
    worth = data.draw(st.lists(st.integers(0, 5), min_size=candidates, max_size=candidates))
    told = halved(
        {"one": candidates},
        rounds(*given_plan),
        lambda left, count: {("one", i): (float(worth[i]),) for i in left["one"]},
    )
    assert told["one"][-1]["kept"] == [worth.index(max(worth))]
