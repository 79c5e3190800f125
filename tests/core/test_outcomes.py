"""Reward spread against a float64 oracle, difficulty bands against the paper's intervals, and the books they lead to."""

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import BookkeepingConfig, ExGRPOConfig
from recipe.exgrpo.core.outcomes import in_band, spread_buckets
from recipe.exgrpo.core.policies.replay import Group, ReplayManager

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


# ---- continuous rewards in the books


def manager(**books) -> ReplayManager:
    return ReplayManager(
        ExGRPOConfig(start_threshold=None, bookkeeping=BookkeepingConfig(outcome="reward_spread", **books)), K
    )


WIDE = [0.0, 1.0] * 4
MIDDLE = [0.2, 0.6, 0.9, 0.2, 0.6, 0.2, 0.6, 0.2]  # mean 0.4375
FLAT = [0.9] * 8


def test_spread_decides_the_bucket_and_the_group_mean_what_is_stored():
    replay = manager()
    to_store = replay.grade([Group("wide", WIDE), Group("middle", MIDDLE), Group("flat", FLAT)])
    assert to_store == {0: [1, 3, 5, 7], 1: [1, 2, 4, 6]}
    assert replay.buffer.latest_count("wide") == K - 1
    assert replay.buffer.latest_count("middle") == round(np.std(MIDDLE) / 0.5 * K) == 4
    assert replay.buffer.latest_count("flat") is None  # never seen with a spread: not entered
    assert not replay.buffer.retired


def test_counting_successes_would_have_said_something_else():
    counts = ReplayManager(ExGRPOConfig(start_threshold=None), K)
    to_store = counts.grade([Group("wide", WIDE), Group("middle", MIDDLE), Group("flat", FLAT)])
    assert to_store == {0: [1, 3, 5, 7], 1: [1, 2, 4, 6]}
    assert (counts.buffer.latest_count("wide"), counts.buffer.latest_count("middle")) == (4, 4)
    assert counts.buffer.is_retired("flat")


def test_the_replayed_reward_belongs_to_the_group():
    replay = manager()
    groups = [Group("q", [0.0] * 7, 1.0), Group("flat", FLAT), Group("wide", WIDE), Group("partial", [0.0, 5.0])]
    assert replay.grade(groups) == {2: [1, 3, 5, 7]} | {0: []}
    assert replay.buffer.latest_count("q") == round(np.std([0.0] * 7 + [1.0]) / 0.5 * K) == 5
    assert replay.report.partial_groups == 1
    assert replay.buffer.latest_count("partial") is None


def test_a_question_that_lost_its_spread_is_ineligible_until_it_has_one_again():
    replay = manager()
    replay.grade([Group("q", MIDDLE), Group("flat", FLAT), Group("wide", WIDE)])
    replay.grade([Group("q", FLAT), Group("wide", WIDE)])
    assert replay.buffer.latest_count("q") == 0
    replay.grade([Group("q", MIDDLE), Group("flat", FLAT), Group("wide", WIDE)])
    assert replay.buffer.latest_count("q") == 4


# ---- controls


def test_without_injection_nothing_planned_counts_as_skipped():
    for inject, skipped in ((True, 1), (False, 0)):
        replay = ReplayManager(ExGRPOConfig(start_threshold=None, rho=1.0, inject=inject), K)
        replay.buffer.record("q", 3)
        replay.buffer.add("q", Response([1, 2], [-1.0, -1.0]), 1.0, step=0)
        assert replay.plan(1) == ["q"]
        assert replay.metrics(1)["planned_questions"] == 1
        assert replay.metrics(1)["skipped_replays"] == skipped


def test_without_a_share_questions_still_retire_and_none_is_drawn():
    replay = ReplayManager(ExGRPOConfig(start_threshold=None, rho=0.0), K)
    replay.grade([Group("easy", [1.0] * K), Group("mixed", WIDE)])
    assert replay.buffer.is_retired("easy")
    assert replay.plan(8) == []
    assert replay.metrics(1)["newly_retired"] == 0  # a new step's report


def test_retired_review_counts_what_it_puts_back():
    books = BookkeepingConfig(review_interval=5, review_share=0.1)
    replay = ReplayManager(ExGRPOConfig(start_threshold=None, bookkeeping=books), K)
    for i in range(20):
        replay.buffer.retire(f"q{i}")
    seen = []
    for step in range(1, 11):
        replay.plan(4)
        replay.finish_step(step, 0.5)
        seen.append((replay.metrics(step)["reviewed"], len(replay.buffer.retired)))
    assert seen == [(0, 20)] * 4 + [(2, 18)] + [(0, 18)] * 4 + [(2, 16)]  # ceil(10 %)
