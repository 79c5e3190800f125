"""Rescue: which groups get a stored success, whose, where it stands, and the advantages of the group that it makes."""

import json

import numpy as np
import pytest
from steps import K, Lent, finish, fresh, make, rewards

from recipe.exgrpo.core.policies.policy import Arrangement, Group


def solved(policy, question="a", successes=1, step=1, **lent):
    finish(policy, [Group(question, rewards(successes))], step=step, **lent)
    return policy


def arrange(policy, *groups: Group, step=2) -> Arrangement:
    policy.plan(len(groups), fresh())
    return policy.arrange(groups, Lent().tools, step)


def test_a_failed_group_gets_a_success_of_its_own_question_in_the_place_of_its_last_rollout():
    policy = solved(solved(make("rescue"), "a"), "b", ids=lambda i, j: [5, j])
    found = arrange(policy, Group("b", rewards(0)), Group("c", rewards(0)), Group("a", rewards(2)))
    assert found.leave == [(0, K - 1)]
    assert [(one.trajectory.question, one.trajectory.token_ids.tolist()) for one in found.place] == [("b", [5, 0])]
    after = np.array([0.0] * (K - 1) + [1.0])
    assert found.place[0].advantage == pytest.approx((after - after.mean())[-1])
    assert found.advantages == {(0, j): pytest.approx(-1 / K) for j in range(K - 1)}
    metrics = policy.metrics(2)
    assert (metrics["rescued_groups"], metrics["replayed_rows"], metrics["reuse_max"]) == (1, 1, 1)
    assert (policy.loss.shaping, policy.loss.importance) == ("clip", "past")


def test_advantages_follow_whatever_rewards_the_failures_have():
    policy = solved(make("rescue"))
    failures = [0.1, 0.4, 0.0, 0.2, 0.3, 0.0, 0.0, 0.5]
    found = arrange(policy, Group("a", failures))
    after = np.array([*failures[:-1], 1.0])
    centred = after - after.mean()
    assert [found.advantages[0, j] for j in range(K - 1)] == pytest.approx(centred[:-1].tolist())
    assert found.place[0].advantage == pytest.approx(centred[-1])


@pytest.mark.parametrize(
    "group", [Group("a", rewards(1)), Group("a", rewards(0, K - 1)), Group("z", rewards(0))], ids=str
)
def test_other_groups_stay_as_they_are(group):
    policy = solved(make("rescue"))
    assert arrange(policy, group) == Arrangement([], [], {})
    assert policy.metrics(2)["rescued_groups"] == 0


@pytest.mark.parametrize(("successes", "stored"), [(0, 0), (3, 3), (K, K)])
def test_successes_of_all_groups_are_kept(successes, stored):
    assert len(solved(make("rescue"), successes=successes).store.rows("a")) == stored


def test_the_rescuer_is_random_and_a_resumed_run_draws_the_same(restored):
    policy = solved(make("rescue", seed=3), successes=6)
    resumed = make("rescue", seed=9)
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict())), restored(policy.store))
    failed = Group("a", rewards(0))
    drawn = [[arrange(one, failed, step=n).place[0].trajectory.row for n in range(2, 12)] for one in (policy, resumed)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 2


def test_nothing_before_the_start():
    policy = make("rescue", start_threshold=0.9)
    solved(policy)
    assert policy.metrics(1)["added"] == 0
    assert arrange(policy, Group("a", rewards(0))) == Arrangement([], [], {})


@pytest.mark.parametrize("values", [{"place": "zero_variance"}, {"rows": {"extra": 0.5}}], ids=str)
def test_what_has_no_say_is_refused(values):
    with pytest.raises(ValueError, match=r"exgrpo\.policy=rescue"):
        make("rescue", **values)
