"""Retired review (Table 7, App. E.4): what counts is that reviewed questions are in batches, not that a counter moved."""

import json
from collections import Counter

import pytest

from recipe.exgrpo.core.buffer import Response
from recipe.exgrpo.core.config import BookkeepingConfig, ExGRPOConfig
from recipe.exgrpo.core.policies import make_policy
from recipe.exgrpo.core.policies.policy import Group, Tools

K, B, QUESTIONS, INTERVAL, SHARE = 4, 8, 200, 5, 0.5


class OnePass:
    """A dataset whose cursor has passed a question for good, as an epoch of 690 of 700 steps does."""

    def __init__(self):
        self.left = [f"q{i}" for i in range(QUESTIONS)]

    def __len__(self):
        return QUESTIONS

    def draw(self, skip):
        return self.left.pop(0)


def policy(**books):
    books = BookkeepingConfig(review_interval=INTERVAL, review_share=SHARE, **books)
    return make_policy(ExGRPOConfig(start_threshold=None, bookkeeping=books), K)


def run(found, dataset, steps, solved=lambda question, step: True, first=1):
    """Slots of each step; a question is solved by all of its fresh rollouts or, by `solved`, by half of them."""
    tools = Tools(
        score=None,
        read=lambda members: [Response([i, j], [-1.0, -1.0]) for i, j in members],
        entropies=None,
    )
    plans = {}
    for step in range(first, first + steps):
        plans[step] = found.plan(B, dataset)
        groups = [
            Group(
                slot.question, [1.0] * K if solved(slot.question, step) else [1.0, 0.0] * (K // 2), planned=slot.planned
            )
            for slot in plans[step]
        ]
        found.finish(groups, tools, step, 1.0)
    return plans


def reviewed_in(plans):
    """Questions that came by name with K rollouts, by step."""
    return {step: [s.question for s in slots if s.planned and s.rollouts == K] for step, slots in plans.items()}


def test_reviewed_questions_are_in_the_batches_that_follow_with_all_their_rollouts():
    found = policy()
    plans = run(found, OnePass(), 12)
    back = reviewed_in(plans)
    # 40 questions are retired after step 5: 20 of them fill steps 6, 7 and half of 8; the cursor gives the rest.
    assert [len(back[step]) for step in range(1, 11)] == [0, 0, 0, 0, 0, 8, 8, 4, 0, 0]
    earlier = {slot.question for step in range(1, 6) for slot in plans[step]}
    assert set(back[6] + back[7] + back[8]) <= earlier
    assert len(set(back[6] + back[7] + back[8])) == 20
    assert all(len({slot.question for slot in slots}) == len(slots) == B for slots in plans.values())


def test_the_metric_is_what_is_in_the_batch():
    found, dataset = policy(), OnePass()
    for step in range(1, 9):
        plan = run(found, dataset, 1, first=step)
        assert found.metrics(step)["reviewed"] == len(reviewed_in(plan)[step])


def test_without_review_none_comes_back():
    found = make_policy(ExGRPOConfig(start_threshold=None), K)
    assert not any(reviewed_in(run(found, OnePass(), 12)).values())


def test_what_a_review_finds_decides():
    found = policy()
    first = run(found, OnePass(), INTERVAL)
    seen = {slot.question for slots in first.values() for slot in slots}
    assert set(found.store.retired) == seen
    dataset = OnePass()
    dataset.left = dataset.left[INTERVAL * B :]
    back = reviewed_in(run(found, dataset, 1, solved=lambda question, step: question not in seen, first=6))[6]
    # Solved in half now: out of the retired set, in a bucket, with its successes stored; and replayed from then on.
    assert [found.store.is_retired(question) for question in back] == [False] * B
    assert [found.store.latest_count(question) for question in back] == [K // 2] * B
    assert all(len(found.store.rows(question)) for question in back)


def test_a_question_under_review_survives_a_resume():
    found, other = policy(), policy()
    run(found, OnePass(), INTERVAL)
    state = json.loads(json.dumps(found.state_dict()))
    other.load_state_dict(state, found.store)
    plans = [reviewed_in(run(which, OnePass(), 3, first=6)) for which in (other,)]
    assert Counter(len(questions) for questions in plans[0].values()) == {8: 2, 4: 1}


@pytest.mark.parametrize(
    ("rho", "size", "n"), [(0.29, 100, 29), (0.5, 7, 3), (0.1, 8, 0), (0.57, 100, 57), (1.0, 8, 8)]
)
def test_the_share_is_the_one_that_was_meant(rho, size, n):
    from recipe.exgrpo.core.sampler import share_of

    assert share_of(size, rho) == n
