"""LUFFY and RLEP in the laboratory: the teacher's traces are right, stand in the groups, and weigh as their formulas say."""

import numpy as np
import pytest
from tiny_lab import K, Parity, lab, recorded

from recipe.exgrpo.lab.families import FAMILIES, family
from recipe.exgrpo.lab.teacher import solutions
from recipe.exgrpo.lab.vocabulary import EOS, Vocabulary

FROM_TEACHER = {"experience": {"init_from": ["teacher"], "importance": "none"}}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_is_perfect(name):
    task = family(name)
    questions = {task.prompt(q): q for q in task.questions(20, np.random.default_rng(0))}
    vocabulary = Vocabulary(task.pieces)
    prompts = {text: vocabulary.encode(text) for text in questions}
    rows = list(solutions(task, vocabulary, questions, prompts, 3))
    assert {row.question for row in rows} == set(questions)
    assert all(task.grade(questions[row.question], vocabulary.decode(row.response)) for row in rows)
    assert all(row.response[-1] == EOS and len(row.response) <= task.response_tokens for row in rows)


def test_luffy_trains_on_one_trace_in_each_group_with_pi_past_one():
    run = lab("luffy")
    traces = {
        (t.question, tuple(t.token_ids)) for t in map(run.policy.store.trajectory, run.policy.store.candidates().row)
    }
    seen = recorded(run)
    metrics = run.step(1)
    rows = seen[0]
    replayed = [row for row in rows if row.is_replayed]
    with_traces = {question for question, _ in traces} & {row.question for row in rows}
    assert len(replayed) == metrics["experience/guided_groups"] == len(with_traces) >= 5
    assert len(rows) == 8 * K
    for row in replayed:
        assert (row.question, tuple(row.response)) in traces
        assert Parity().grade(run.train[row.question], run.vocabulary.decode(row.response))
        np.testing.assert_array_equal(row.behaviour, 0)
        group = [other.reward for other in rows if other.question == row.question]
        assert row.advantage == pytest.approx(1 - np.mean(group))
    assert run.costs.fresh_rollouts == 8 * K - len(replayed)


def test_scored_traces_have_the_start_models_log_probs():
    run = lab("luffy", experience={"init_from": ["teacher"], "importance": "scored"})
    store = run.policy.store
    for handle in store.candidates().row[:5].tolist():
        found = store.trajectory(handle)
        nll = run.score([found]).nll[0]
        assert -found.log_probs.mean() == pytest.approx(nll, rel=1e-5)
        assert found.origin.behaviour == "scored"


def test_rlep_adds_two_and_measures_them_by_todays_policy():
    run = lab("rlep")
    seen = recorded(run)
    metrics = run.step(1)
    rows = seen[0]
    replayed = [row for row in rows if row.is_replayed]
    assert 5 <= metrics["experience/guided_groups"] < len(replayed) <= 16
    assert run.costs.fresh_rollouts == 8 * K - len(replayed)
    for row in replayed[:3]:
        assert float(np.max(row.behaviour)) < 0  # recomputed at the start of the step, not log 1


def test_any_method_may_start_from_the_teacher_and_none_does_unasked():
    run = lab("exgrpo_at_once", **FROM_TEACHER)
    stored = len(run.policy.store.candidates())
    assert stored >= 20
    assert stored / 2 < run.step(1)["experience/imported_trajectories"] <= stored  # retired questions lose theirs
    bare = lab("exgrpo_at_once")
    assert bare.step(1)["experience/imported_trajectories"] == bare.step(2)["experience/guided_groups"] == 0
    assert lab("on_policy", **FROM_TEACHER).policy.store is None
