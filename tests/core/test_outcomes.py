"""Reward spread against a float64 oracle, and difficulty bands against the paper's intervals."""

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.exgrpo.core.outcomes import in_band, spread_buckets

K = 8
REWARDS = st.lists(st.floats(-20, 20), min_size=K, max_size=K)


def oracle(groups, group_size):
    """Section 5.3 word by word, in Python floats."""
    spreads = [statistics.pstdev(rewards) for rewards in groups]
    low, high = min(spreads), max(spreads)
    return [min(round((s - low) / max(high - low, 1e-8) * group_size), group_size - 1) for s in spreads]


@given(st.lists(REWARDS, min_size=1, max_size=12))
def test_spread_buckets_equal_the_oracle(groups):
    found = spread_buckets(groups, K)
    for bucket, expected in zip(found, oracle(groups, K), strict=True):
        assert abs(bucket - expected) <= 1  # a tie of the rounding may fall either way
    assert all(0 <= bucket < K for bucket in found)


def test_spread_buckets_by_hand():
    half = [0.0, 1.0] * 4  # 0.5
    quarter = [0.0, 0.5] * 4  # 0.25
    flat = [0.3] * 8
    assert spread_buckets([half, quarter, flat], K) == [K - 1, 4, 0]
    assert spread_buckets([[2.0, 4.0] * 4, [1.0, 1.3] * 4, [0.0, 1.0] * 4], K) == [K - 1, 0, 3]  # 1, 0.15, 0.5
    assert spread_buckets([half, half], K) == [0, 0]
    assert spread_buckets([], K) == []


@given(st.lists(REWARDS, min_size=2, max_size=6), st.floats(0.1, 10), st.floats(-5, 5))
def test_spread_buckets_do_not_depend_on_scale_and_origin(groups, scale, origin):
    moved = [[scale * r + origin for r in rewards] for rewards in groups]
    spreads = [np.std(rewards) for rewards in groups]
    if max(spreads) - min(spreads) > 1e-3:
        assert np.abs(np.subtract(spread_buckets(groups, K), spread_buckets(moved, K))).max() <= 1


INTERVALS = {
    "easy": lambda share: Fraction(3, 4) <= share < 1,
    "medium": lambda share: Fraction(1, 4) < share <= Fraction(3, 4),
    "hard": lambda share: 0 < share <= Fraction(1, 4),
}


@pytest.mark.parametrize("band", INTERVALS)
@pytest.mark.parametrize("group_size", [2, 3, 5, 8, 64])
def test_bands_are_the_papers_intervals(band, group_size):
    found = [in_band(k, group_size, band) for k in range(group_size + 1)]
    assert found == [INTERVALS[band](Fraction(k, group_size)) for k in range(group_size + 1)]


def test_bands_of_eight():
    assert {band: [k for k in range(9) if in_band(k, 8, band)] for band in INTERVALS} == {
        "easy": [6, 7],
        "medium": [3, 4, 5, 6],
        "hard": [1, 2],
    }
