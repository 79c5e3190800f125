"""SU-01 (arXiv 2605.13301) as settings of ExGRPO: lone successes are kept, and questions retire above 4 of 8."""

import pytest
from steps import K, finish, fresh, make, past, rewards

from recipe.exgrpo.core.config import BookkeepingConfig
from recipe.exgrpo.core.policies.admit import ADMIT
from recipe.exgrpo.core.policies.policy import Group
from recipe.exgrpo.presets.variants import preset_settings


def su01(**bookkeeping):
    """The preset; `bookkeeping` changes keys of that node."""
    values = preset_settings("method", "su01")
    return make(**values | {"bookkeeping": values["bookkeeping"] | bookkeeping})


@pytest.mark.parametrize(
    ("group", "stored", "count", "retired"),
    [
        (Group("q", rewards(0)), [], None, False),
        (Group("q", [0.0, 0.0, 1.0] + [0.0] * 5), [2], 1, False),
        (Group("q", rewards(2)), [], 2, False),  # known, and without a trajectory not eligible
        (Group("q", rewards(4)), [], 4, False),
        (Group("q", rewards(5)), [], None, True),
        (Group("q", rewards(K)), [], None, True),
        # Of the fresh rollouts alone, scaled to K: 4 of 7 is more than 4 of 8.
        (Group("q", rewards(1, K - 1), [past()]), [0], 1, False),
        (Group("q", rewards(3, K - 1), [past()]), [], 3, False),
        (Group("q", rewards(4, K - 1), [past()]), [], None, True),
        (Group("q", rewards(0, K - 1), [past()]), [], None, False),
    ],
    ids=str,
)
def test_what_a_group_leaves_behind(group, stored, count, retired):
    policy = su01()
    read = finish(policy, [group]).members
    assert [j for _, j in read] == stored
    assert (policy.store.latest_count("q"), policy.store.is_retired("q")) == (count, retired)
    assert policy.metrics(1)["newly_retired"] == retired


def test_a_stored_question_follows_its_count_and_stays_eligible_until_it_retires():
    policy = su01()
    finish(policy, [Group("q", rewards(1))])
    for successes, bucket in ((3, 3), (4, 4), (2, 2)):
        finish(policy, [Group("q", rewards(successes))])
        assert policy.store.bucket_sizes().tolist() == [int(k == bucket) for k in range(K + 1)]
    finish(policy, [Group("q", rewards(5))])
    assert policy.store.bucket_sizes().sum() == len(policy.store.rows("q")) == 0


def test_a_quarter_of_the_batch_is_replayed():
    policy = su01()
    finish(policy, [Group(f"q{i}", rewards(1)) for i in range(9)])
    assert sum(slot.planned for slot in policy.plan(16, fresh())) == 4


def test_a_lone_success_is_that_of_a_group_with_no_other():
    context = make().context(1)
    found = [ADMIT["lone_success"](Group("q", rewards(k)), context) for k in range(4)]
    assert found == [[], [0], [], []]
    assert ADMIT["lone_success"](Group("q", [0.0, 1.0, 0.0], [past()]), context) == [1]


@pytest.mark.parametrize(("above", "retired"), [(None, {K}), (4, {5, 6, 7, K}), (1, {*range(2, K + 1)}), (99, {K})])
@pytest.mark.parametrize("active", [True, False], ids=["replay", "before it"])
def test_the_bound_of_retirement(above, retired, active):
    """Before replay, too, with `retire_from_start`."""
    books = {"retire_above": above, "retire_from_start": True}
    policy = make(start_threshold=None if active else 0.9, bookkeeping=books)
    finish(policy, [Group(f"q{k}", rewards(k)) for k in range(K + 1)])
    assert set(policy.store.retired) == {f"q{k}" for k in retired}


def test_without_retirement_what_is_solved_leaves_its_bucket():
    policy = su01(retire=False)
    finish(policy, [Group("q", rewards(1))])
    finish(policy, [Group("q", rewards(5))])
    assert (policy.store.latest_count("q"), policy.store.retired) == (0, [])


@pytest.mark.parametrize("values", [{"retire_above": 0}, {"retire_above": 4, "outcome": "reward_spread"}], ids=str)
def test_nonsense_is_refused(values):
    with pytest.raises(ValueError, match=r"exgrpo\.bookkeeping\.retire_above"):
        BookkeepingConfig(**values)
