"""The group advantage against a float64 oracle that walks over groups in plain Python."""

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.exgrpo.core.advantage import group_advantages


def oracle(rewards, groups, by_std):
    result = []
    for reward, group in zip(rewards, groups, strict=True):
        members = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        centred = reward - statistics.fmean(members)
        spread = statistics.stdev(members) if len(members) > 1 else 0.0
        result.append(centred / (spread + 1e-6) if by_std else centred)
    return result


def advantages(rewards, groups, by_std=False, dtype=torch.float64):
    return group_advantages(torch.tensor(rewards, dtype=dtype), np.array(groups, dtype=object), normalize_by_std=by_std)


@settings(max_examples=200, deadline=None)
@given(
    members=st.lists(
        st.tuples(st.sampled_from(["a", "b", "replay7x0", "c-d"]), st.floats(-3, 3, width=32)), min_size=1, max_size=24
    ),
    by_std=st.booleans(),
)
def test_equals_the_oracle_on_ragged_interleaved_groups(members, by_std):
    groups, rewards = zip(*members, strict=True)
    found = advantages(rewards, groups, by_std)
    np.testing.assert_allclose(found, oracle(rewards, groups, by_std), rtol=1e-6, atol=1e-9)


def test_the_papers_binary_case():
    # K = 8 with the replayed trajectory as one of three successes: 1 - 3/8 and -3/8.
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert advantages(rewards, ["q"] * 8).tolist() == [r - 0.375 for r in rewards]


def test_the_replayed_member_moves_the_mean_of_its_siblings():
    fresh = advantages([0.0, 0.0, 0.0], ["q"] * 3)
    mixed = advantages([0.0, 0.0, 0.0, 1.0], ["q"] * 4)
    assert fresh.tolist() == [0.0, 0.0, 0.0]
    assert mixed.tolist() == [-0.25, -0.25, -0.25, 0.75]


@pytest.mark.parametrize("by_std", [False, True])
def test_a_group_of_one_gets_nothing_whatever_its_reward(by_std):
    assert advantages([1.0, 1.0, 0.0], ["lone", "q", "q"], by_std)[0] == 0.0


@pytest.mark.parametrize("by_std", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_group_of_equal_rewards_gets_nothing(reward, by_std):
    assert advantages([reward] * 8, ["q"] * 8, by_std).tolist() == [0.0] * 8


def test_groups_sum_to_zero_and_the_default_does_not_divide_by_the_spread():
    found = advantages([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], ["easy", "hard"] * 4)
    assert float(found.sum()) == 0.0
    assert found.abs().max() <= 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_the_order_of_groups_does_not_matter(dtype):
    rewards, groups = [1.0, 0.0, 1.0, 0.0, 0.0], ["b", "a", "a", "b", "b"]
    found = advantages(rewards, groups, dtype=dtype)
    assert found.dtype == dtype
    back = advantages(rewards[::-1], groups[::-1], dtype=dtype)
    torch.testing.assert_close(found, back.flip(0))


def test_ids_that_begin_alike_are_different_groups():
    assert advantages([1.0, 0.0], ["x" * 40, "x" * 41]).tolist() == [0.0, 0.0]
