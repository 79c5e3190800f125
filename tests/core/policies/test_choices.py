"""What competed for a place, and what was taken: against the store and the scores that were lent."""

import math

import numpy as np
import pytest
from steps import K, Lent, fresh, make, rewards, stored

from recipe.exgrpo.core.policies.choices import SHOWN, Choice
from recipe.exgrpo.core.policies.policy import Group
from recipe.exgrpo.core.selection import Scores

ENTROPY = [0.5, 0.123456789, math.inf, 0.4]  # of a question's trajectories, in order of storage


def planned(policy, step: int = 9) -> tuple[dict, list[Choice]]:
    """A step whose half batch comes from the store: what joined, and the choices reported."""
    slots = policy.plan(8, fresh())
    groups = [Group(slot.question, rewards(1, slot.rollouts), planned=slot.planned) for slot in slots]
    lent = Lent(entropy=lambda trajectory: ENTROPY[trajectory.birth_step])
    return policy.inject(groups, lent.tools, step), policy.choices()


def test_a_planned_question_reports_its_candidates_best_first():
    policy = stored(make(), {"a": 1, "b": 3}, rows=4)
    policy.store.mark_used(policy.store.rows("a"), 5)
    joined, choices = planned(policy)
    assert [choice.question for choice in choices] == [[found[0].question] for found in joined.values()]
    for choice in choices:
        handles = policy.store.rows(choice.question[0])
        assert choice.row == handles[[1, 3, 0, 2]].tolist()
        assert choice.entropy == [0.12346, 0.4, 0.5, None]
        assert choice.nll == [-0.12346, -0.4, -0.5, None]
        assert choice.taken == [True, False, False, False]
        assert choice.birth_step == [1, 3, 0, 2]
        assert choice.use_count == [int(choice.question == ["a"])] * 4  # before this use
        assert choice.considered == 4


def test_without_scores_there_are_none_and_each_step_starts_anew():
    policy = stored(make(rank="oldest"), {"a": 1}, rows=2)
    for _ in range(2):
        _, (choice,) = planned(policy)
        assert (choice.entropy, choice.nll, choice.taken) == ([None] * 2, [None] * 2, [True, False])
    policy.plan(8, fresh())
    assert policy.choices() == []


def test_of_many_the_best_and_those_taken_are_kept():
    policy = stored(make(), {"a": 1}, rows=40)
    candidates = policy.store.candidates()
    order = np.arange(40)[::-1]
    scores = Scores(np.arange(40.0), -np.arange(40.0), np.zeros(40), np.zeros(40))
    choice = Choice.of(policy.store, candidates, scores, order, taken=[0])
    assert choice.considered == 40
    assert choice.row == candidates.row[[*order[:SHOWN], 0]].tolist()
    assert choice.entropy == [*range(39, 39 - SHOWN, -1), 0]
    assert choice.taken == [False] * SHOWN + [True]


@pytest.mark.parametrize("source", ["past", "current"])
def test_refill_reports_the_groups_that_competed(source):
    policy = make("refill", refill={"source": source})
    lent = Lent()
    mixed = [Group("a", rewards(2)), Group("b", rewards(5))]
    policy.plan(8, fresh())
    policy.finish(mixed, lent.tools, 1, 0.5)
    policy.plan(8, fresh())
    groups = [*mixed, Group("c", rewards(0))]
    policy.arrange(groups, lent.tools, 2)
    (choice,) = policy.choices()
    assert sorted(zip(choice.question, choice.solved, strict=True)) == [("a", 2), ("b", 5)]
    assert choice.considered == 2
    assert sum(n for n, taken in zip(choice.solved, choice.taken, strict=True) if taken) <= K
    assert any(choice.taken)
    # Handles of the control's own store say nothing once the step is over.
    assert all((row == -1) == (source == "current") for row in choice.row)


@pytest.mark.parametrize("policy", ["on_policy", "masked"])
def test_a_policy_without_a_store_chooses_nothing(policy):
    assert make(policy).choices() == []
