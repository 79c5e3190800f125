"""Single stored rollouts: what is drawn, with which weights, until what age, in freed rows and on top, and the state."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from steps import K, Lent, finish, fresh, log_probs_of, make, rewards

from recipe.exgrpo.core.policies.policy import Arrangement, Group
from recipe.exgrpo.core.policies.rank import RANK
from recipe.exgrpo.presets.variants import preset_settings


def anchored(place="steps:free_rows", **values):
    return make("anchored", place=place, **values)


def collect(policy, counts, step=1):
    finish(policy, [Group(question, rewards(k)) for question, k in counts.items()], step=step)
    return policy


def draw(policy, budget, step=2) -> Arrangement:
    policy.plan(1, fresh())
    return policy.arrange([Group(f"free{budget}", rewards(0, max(2, budget)))], Lent().tools, step)


def test_a_rollout_comes_with_the_advantage_and_log_probs_of_its_birth():
    policy = collect(anchored(), {"a": 3})
    found = draw(policy, 5)
    assert (len(found.leave), len(found.place)) == (5, 5)
    for placed in found.place:
        ids = placed.trajectory.token_ids.tolist()
        solved = ids[1] < 3  # rollout j answers [i, j, 7]
        assert placed.advantage == (1 - 3 / 8 if solved else -3 / 8)
        assert placed.trajectory.log_probs.tolist() == pytest.approx(log_probs_of(ids))
    assert len({placed.trajectory.row for placed in found.place}) == 5  # without replacement
    assert policy.metrics(2)["replayed_rows"] == 5
    assert (policy.loss.shaping, policy.loss.importance) == ("clip", "past")


@pytest.mark.parametrize(("budget", "drawn"), [(0, 0), (3, 3), (40, 2 * K)])
def test_as_many_as_there_is_room_and_something_for(budget, drawn):
    assert len(draw(collect(anchored(), {"a": 3, "b": 1, "c": 0, "d": K}), budget).place) == drawn


def test_on_top_of_the_batch():
    policy = collect(anchored(rows={"extra": 0.3}), {"a": 3, "b": 1})
    policy.plan(2, fresh())
    found = policy.arrange([Group("x", rewards(0)), Group("y", rewards(3))], Lent().tools, 2)
    assert (list(found.leave), list(found.place), len(found.extra)) == ([], [], 4)  # floor(0.3 * 16)


def test_the_age_of_the_preset_is_ten_at_the_draw():
    policy = collect(make(**preset_settings("method", "anchored") | {"place": "steps:free_rows"}), {"a": 3})
    for step in range(2, 13):
        assert len(draw(policy, 1, step).place) == (step - 1 <= 10), step
        finish(policy, [Group("x", rewards(0))], step=step)
    assert policy.store.evicted["age"] == K


# ---- weights


def firsts(rank: str, n=20_000, **values) -> dict[float, float]:
    """Share of draws in which a stored rollout came first, by what it is."""
    policy = anchored(rank=rank, **values)
    collect(policy, {"a": 1, "b": 4}, step=1)
    collect(policy, {"c": 1}, step=4)
    rows = policy.store.candidates()
    counts = Counter(int(RANK[rank](rows, None, policy.context(5))[0]) for _ in range(n))
    return {i: counts[i] / n for i in range(len(rows))}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_by_the_size_of_the_advantage(alpha):
    found = firsts("advantage", rows={"alpha": alpha})
    sizes = [abs(r - k / K) for k in (1, 4, 1) for r in rewards(k)]
    weights = np.array([(size + 1e-6) ** alpha for size in sizes])
    expected = weights / weights.sum()
    assert [found[i] for i in range(len(sizes))] == pytest.approx(expected.tolist(), abs=0.012)


def test_by_reward_and_freshness():
    found = firsts("fresh", rows={"alpha": 0.5, "decay_steps": 2.0})
    rows = [(r, 5 - birth) for k, birth in ((1, 1), (4, 1), (1, 4)) for r in rewards(k)]
    weights = np.array([((r + 1e-6) * math.exp(-age / 2.0)) ** 0.5 for r, age in rows])
    expected = weights / weights.sum()
    assert [found[i] for i in range(len(rows))] == pytest.approx(expected.tolist(), abs=0.012)
    assert expected[16] == max(expected)  # the one success of three steps later


def test_a_resumed_run_draws_the_same(restored):
    policy = collect(anchored(seed=2), {"a": 3, "b": 5})
    draw(policy, 4)
    resumed = anchored(seed=7)
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())), restored(policy.store))
    drawn = [[p.trajectory.row for n in range(3, 8) for p in draw(one, 4, n).place] for one in (policy, resumed)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 8


def test_nothing_before_the_start():
    policy = collect(anchored(start_threshold=0.9), {"a": 3})
    assert draw(policy, 4) == Arrangement()
    assert policy.metrics(2)["buffer_trajectories"] == 0
