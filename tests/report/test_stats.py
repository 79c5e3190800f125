"""Student's t against printed tables, and the coverage of its intervals."""

import math

import numpy as np
import pytest

from recipe.exgrpo.report.stats import interval, student_cdf, student_quantile


@pytest.mark.parametrize(("df", "p", "t"), [  # from printed tables
    (1, 0.975, 12.7062), (2, 0.975, 4.3027), (3, 0.975, 3.1824), (4, 0.975, 2.7764), (5, 0.95, 2.0150),
    (9, 0.975, 2.2622), (10, 0.995, 3.1693), (30, 0.975, 2.0423), (200, 0.975, 1.9719),
])  # fmt: skip
def test_student_quantiles_are_those_of_the_tables(df, p, t):
    assert student_quantile(p, df) == pytest.approx(t, abs=5e-5)
    assert student_cdf(t, df) + student_cdf(-t, df) == pytest.approx(1.0)


@pytest.mark.parametrize(("p", "df"), [(0.4, 3), (1.0, 3), (0.975, 0)])
def test_a_quantile_that_does_not_exist_is_refused(p, df):
    with pytest.raises(ValueError, match="need"):
        student_quantile(p, df)


def test_an_interval_covers_its_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(3.0, 2.0, 5)) for _ in range(4000)]
    # 4000 draws: the standard error of a share of 0.95 is 0.0034.
    assert np.mean([abs(one.mean - 3.0) <= one.half for one in found]) == pytest.approx(0.95, abs=0.012)


def test_one_value_has_no_width_and_none_is_refused():
    assert (interval([0.3]).mean, interval([0.3]).n) == (0.3, 1)
    assert math.isnan(interval([0.3]).half)
    with pytest.raises(ValueError, match="at least one value"):
        interval([])
