"""The comparison of variants: what is paired with what, at which steps, against sums worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from recipe.exgrpo.report.comparison import Comparison, mean_height

T_975_DF1 = 12.7062  # Student's t at 97.5 % for one degree of freedom, from a printed table


def comparison(runs: dict[tuple, dict[int, float]], costs: dict | None = None, **columns) -> Comparison:
    """Runs by the values of their columns (variant and seed, or as `columns` says): step -> pass rate."""
    names = [*columns.get("settings", ()), "variant", *columns.get("seeds", ("seed",))]
    evaluations = [(*run, step, rate) for run, curve in runs.items() for step, rate in curve.items()]
    rows = [dict(zip(names, run, strict=True)) | {"seconds": (costs or {}).get(run, math.nan)} for run in runs]
    return Comparison(pd.DataFrame(evaluations, columns=[*names, "step", "pass_rate"]), pd.DataFrame(rows), **columns)


def rows_of(found: Comparison, reference: str = "a") -> dict[str, dict]:
    return {row["variant"]: row for row in found.summary(reference)}


def test_runs_are_paired_by_seed_wherever_they_stand():
    found = comparison({
        ("a", 0): {0: 0.1, 4: 0.4}, ("a", 1): {0: 0.2, 4: 0.6}, ("b", 1): {0: 0.2, 4: 0.7}, ("b", 0): {0: 0.1, 4: 0.7},
    })  # fmt: skip
    row = rows_of(found)["b"]
    assert (row["pairs"], row["compared_to"]) == (2, 4)
    assert row["final_difference"] == pytest.approx((0.3 + 0.1) / 2)
    # Two differences of 0.3 and 0.1: their standard error is 0.1.
    assert row["final_difference_half"] == pytest.approx(T_975_DF1 * 0.1, rel=1e-4)
    # Two straight lines from one point: half of the difference at their end.
    assert row["area_difference"] == pytest.approx(0.1)
    assert rows_of(found)["a"]["final_difference"] is None


def test_seeds_of_one_variant_alone_count_in_its_level_but_not_in_the_difference():
    found = comparison({("a", 0): {4: 0.1}, ("b", 0): {4: 0.2}, ("b", 7): {4: 0.8}})
    row = rows_of(found)["b"]
    assert (row["runs"], row["final"]) == (2, pytest.approx(0.5))
    assert (row["pairs"], row["final_difference"], row["final_difference_half"]) == (1, pytest.approx(0.1), None)


def test_levels_and_differences_are_at_the_steps_that_all_share():
    found = comparison({("a", 0): {0: 0.1, 4: 0.4, 8: 0.9}, ("b", 0): {0: 0.2, 4: 0.6}, ("b", 1): {0: 0.2, 8: 0.8}})
    row = rows_of(found)["b"]
    assert (row["validated_from"], row["validated_to"], row["final"]) == (0, 0, pytest.approx(0.2))
    assert (row["compared_to"], row["final_difference"]) == (4, pytest.approx(0.2))


@pytest.mark.parametrize("other", [{("b", 1): {0: 0.2}}, {("b", 0): {2: 0.2}}, {("b", 0): {0: 0.2, 2: 0.3}}, {}])
def test_without_a_seed_or_a_step_in_common_there_is_no_difference(other):
    found = comparison({("a", 0): {0: 0.1, 4: 0.4}} | other)
    assert found.difference(("b",), "a") is None
    if other:
        row = rows_of(found)["b"]
        assert (row["pairs"], row["compared_to"], row["final_difference"], row["area_difference"]) == (0, *[None] * 3)


def test_runs_that_share_no_step_have_no_level():
    row = rows_of(comparison({("a", 0): {0: 0.1}, ("a", 1): {4: 0.1}}))["a"]
    assert (row["validated_to"], row["start"], row["final"], row["area"]) == (None,) * 4


def test_settings_are_never_compared_and_several_columns_may_pair():
    runs = {
        ("chain", "a", 1, 0): {4: 0.1}, ("chain", "a", 2, 0): {4: 0.3}, ("chain", "b", 2, 0): {4: 0.4},
        ("sums", "b", 1, 0): {4: 0.9},
    }  # fmt: skip
    found = comparison(runs, settings=("family",), seeds=("base_seed", "seed"))
    assert found.difference(("chain", "b"), "a").to_numpy() == pytest.approx(np.array([[0.1]]))
    assert found.difference(("sums", "b"), "a") is None
    assert [(row["family"], row["variant"]) for row in found.summary("a")] == [
        ("chain", "a"), ("chain", "b"), ("sums", "b"),
    ]  # fmt: skip


def test_costs_are_means_over_the_runs_that_have_them():
    runs = {("b", 0): {0: 0.1}, ("b", 1): {0: 0.1}, ("b", 2): {0: 0.1}, ("a", 0): {0: 0.1}}
    found = rows_of(comparison(runs, {("b", 0): 2.0, ("b", 2): 5.0}))
    assert list(found) == ["b", "a"]  # in the order of the table
    assert (found["b"]["seconds"], found["a"]["seconds"]) == (3.5, None)


def test_a_run_evaluated_twice_at_one_step_is_refused():
    found = comparison({("a", 0): {0: 0.1}})
    twice = pd.concat([found.evaluations, found.evaluations])
    with pytest.raises(ValueError, match="duplicate"):
        Comparison(twice, found.costs).summary("a")


def test_the_area_is_the_mean_height():
    curves = pd.DataFrame({0: [0.0, 1.0, 1.0], 1: [0.5, 0.5, 0.5]}, index=[0, 10, 40])
    # Trapezoids by hand: (5 + 30) / 40 and 0.5.
    assert mean_height(curves).mean == pytest.approx((35 / 40 + 0.5) / 2)
    assert mean_height(curves.iloc[:1]).mean == 0.25
