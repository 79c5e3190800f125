"""RePO: earlier rollouts of the batch's own questions on top of it, their advantages among themselves, and their bounds."""

import pytest
from steps import K, Lent, finish, fresh, make, rewards

from recipe.exgrpo.core.policies.policy import Arrangement, Group


def visit(policy, question, successes, step):
    finish(policy, [Group(question, rewards(successes))], step=step, ids=lambda i, j: [step, j])


def arrange(policy, *groups: Group, step=9) -> Arrangement:
    policy.plan(len(groups), fresh())
    return policy.arrange(groups, Lent().tools, step)


def repo(**values):
    return make("repo", rows={"per_question": 4} | values.pop("rows", {}), **values)


def test_the_newest_come_back_with_their_question_and_advantages_among_themselves():
    policy = repo()
    visit(policy, "a", 6, 1)  # the last four: two successes, two failures
    found = arrange(policy, Group("b", rewards(1)), Group("a", rewards(0)))
    assert (list(found.leave), list(found.place), found.advantages) == ([], [], {})
    assert [one.trajectory.token_ids.tolist() for one in found.extra] == [[1, j] for j in (7, 6, 5, 4)]
    assert [one.advantage for one in found.extra] == [-0.5, -0.5, 0.5, 0.5]
    assert policy.metrics(9)["replayed_rows"] == 4


def test_the_selection_is_over_all_visits():
    policy = repo(rows={"per_question": 8})
    visit(policy, "a", 1, 1)
    visit(policy, "a", 8, 2)
    assert arrange(policy, Group("a", rewards(3))).extra == []  # the newest eight were all solved: no variance
    policy = repo(rows={"per_question": 8}, rank="oldest")
    visit(policy, "a", 1, 1)
    visit(policy, "a", 8, 2)
    found = arrange(policy, Group("a", rewards(3)))
    assert [one.advantage for one in found.extra] == pytest.approx([7 / 8] + [-1 / 8] * 7)


@pytest.mark.parametrize("successes", [0, K])
def test_a_selection_without_variance_is_left_out_and_not_counted_as_used(successes):
    policy = repo()
    visit(policy, "a", successes, 1)
    assert arrange(policy, Group("a", rewards(3))).extra == []
    assert policy.store.candidates().use_count.sum() == 0


def test_too_few_stored_ones_do_not_come():
    policy = repo(buffer={"max_per_question": 3})
    visit(policy, "a", 6, 1)
    assert arrange(policy, Group("a", rewards(3))).extra == []


def test_a_question_that_is_twice_in_a_step_brings_them_once_and_never_more_than_the_batch_holds():
    policy = repo()
    visit(policy, "a", 6, 1)
    visit(policy, "b", 6, 1)
    assert len(arrange(policy, Group("a", rewards(0)), Group("a", rewards(2))).extra) == 4
    partial = [Group("a", rewards(0, 3)), Group("b", rewards(0, 3))]
    assert len(arrange(policy, *partial).extra) == 4  # of 6 rows


def test_the_bound_of_a_question_and_the_start():
    policy = repo(buffer={"max_per_question": 8})
    visit(policy, "a", 3, 1)
    visit(policy, "a", 3, 2)
    assert policy.store.candidates().birth_step.tolist() == [2] * 8
    policy = repo(start_threshold=0.9)
    visit(policy, "a", 6, 1)
    assert (policy.metrics(1)["added"], arrange(policy, Group("a", rewards(0)))) == (0, Arrangement(extra=[]))


def test_no_more_come_than_there_are_fresh_ones():
    policy = repo(rows={"per_question": K + 1})
    visit(policy, "a", 6, 1)
    visit(policy, "a", 6, 2)
    assert len(arrange(policy, Group("a", rewards(0))).extra) == K


def test_places_have_no_say():
    with pytest.raises(ValueError, match=r"exgrpo\.policy=repo"):
        make("repo", place="zero_variance")
