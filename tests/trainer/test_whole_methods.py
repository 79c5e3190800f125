"""The other papers' methods in whole runs: what enters an update, and its gradient, against float64 (docs/methods.md)."""

import dataclasses
from collections import Counter

import pytest
import torch
from whole_runs import SOLVED, B, K
from whole_steps import AT_ONCE, MOVING, check, objective_of, row_by_key, steps_of

pytestmark = pytest.mark.verl


def test_rl_zvp_trains_groups_without_variance_by_the_entropies_of_their_tokens(runs, model):
    """q3 and q10 are solved by all, q4 and q11 by none; the entropies are those of the weights that the step began with."""
    run, alpha = runs("rl_zvp", 3, *MOVING, "method=rl_zvp", "exgrpo.options={alpha: 0.2}"), 0.2
    for step in steps_of(run, model):
        model.at(step.updates[0].weights)
        groups, shaped = [], []
        for uid, rows in step.groups.items():
            if step.successes(uid) in (0, K):
                with torch.no_grad():
                    found = [model.tokens(row, 1.0)[1] for row in rows]
                found = [alpha * (h if step.successes(uid) else h - h.max()) for h in found]
                rows = [dataclasses.replace(row, advantage=a) for row, a in zip(rows, found, strict=True)]
                shaped += found
            groups.append(rows)
        check(step, model, groups, objective_of())
        metrics = run.metrics[step.number]
        assert metrics["experience/shaped_rows"] == len(shaped)
        mean = float(torch.cat(shaped).abs().mean()) if shaped else 0.0
        assert metrics["experience/shaped_advantage_mean"] == pytest.approx(mean, rel=1e-3)
        assert metrics["batch/rows_out_of_update"] == 0
    assert [run.metrics[i]["experience/shaped_rows"] for i in (1, 2, 3)] == [K, K, 2 * K]


@pytest.mark.parametrize("method", ["anchored", "freshper"])
def test_single_rollouts_come_back_with_the_advantage_of_their_step(runs, model, method):
    """In the rows of q3, q4, q10 and q11; by |A| failures come as well, by freshness the newest successes first."""
    settings = ("exgrpo.rows.decay_steps=0.15",) if method == "freshper" else ()
    run = runs(method, 3, *AT_ONCE, f"method={method}", *settings)
    rewards, seen = Counter(), []
    for step in steps_of(run, model):
        # A mixed group's advantages are never zero; the rows of the others are out, unless stored ones stand there.
        rows = [[row] for row in row_by_key(step, run).values() if row.advantage]
        check(step, model, rows, objective_of(shaping="clip"))
        metrics = run.metrics[step.number]
        assert metrics["experience/replayed_rows"] == len(step.sources)
        assert metrics["batch/rows_out_of_update"] == B * K - len(rows)
        assert all(0 < SOLVED[source.question] < K for source in step.sources.values())
        rewards.update(source.reward for source in step.sources.values())
        seen.append(Counter(source.step for source in step.sources.values()))
    assert [sum(counts.values()) for counts in seen] == [0, K, 2 * K]
    assert set(rewards) == ({1.0} if method == "freshper" else {0.0, 1.0})
    if method == "freshper":
        assert seen[2] == {2: 6, 1: 2}  # step 2 had 6 successes in mixed groups


def test_repo_brings_the_newest_rollouts_of_a_question_on_top_of_the_batch(runs, model):
    """From the second epoch on; q3, q4, q10 and q11 have nothing that differs. In step 7 each has two earlier visits."""
    run = runs("repo", 7, *AT_ONCE, "method=repo")
    for step in steps_of(run, model):
        extra, metrics = len(step.sources), run.metrics[step.number]
        rows = [[row] for row in row_by_key(step, run).values()]
        assert len(rows) == B * K + extra
        check(step, model, rows, objective_of(shaping="clip", rows=len(rows)))
        assert metrics["experience/extra_rows"] == metrics["experience/replayed_rows"] == extra
        mixed = [question for question in step.questions.values() if 0 < SOLVED[question] < K]
        expected = {question: K for question in mixed if step.number > 3}
        assert Counter(source.question for source in step.sources.values()) == expected
        assert {source.step for source in step.sources.values()} == ({step.number - 3} if expected else set())


def test_prompts_come_back_with_fresh_rollouts_once(runs, model):
    """What was solved by some waits for a step, comes once, and makes room; nothing stored is trained on."""
    run = runs("prompts", 4, *AT_ONCE, "method=prompts", "exgrpo.buffer={cooldown_steps: 1, max_reuse: 1}")
    steps = steps_of(run, model)
    for step in steps:
        assert not step.sources
        assert sorted(map(len, step.groups.values())) == [K] * B
        check(step, model, list(step.groups.values()), objective_of())
    asked = [sorted(step.questions.values()) for step in steps]
    assert asked == [
        ["q0", "q1", "q2", "q3"],
        ["q4", "q5", "q6", "q7"],
        ["q0", "q1", "q2", "q8"],
        ["q5", "q6", "q7", "q9"],
    ]
    names = ("planned_questions", "kept_prompts", "graduated_prompts")
    found = [[run.metrics[i][f"experience/{name}"] for name in names] for i in (1, 2, 3, 4)]
    assert found == [[0, 3, 0], [0, 6, 0], [3, 4, 3], [3, 2, 3]]


def test_su01_replays_lone_successes_clipped_and_retires_early(runs, model):
    """q1, q6 and q9 have one success; with 2 of 4 as the bound q2 and q7 retire, and q3, solved by all."""
    run = runs("su01", 3, *AT_ONCE, "method=su01", "exgrpo.bookkeeping.retire_above=2")
    for step in steps_of(run, model):
        assert sorted(map(len, step.groups.values())) == [K] * B
        check(step, model, list(step.groups.values()), objective_of(shaping="clip"))
        assert len(step.sources) == int(step.number > 1)  # rho 0.25 of 4
        assert {SOLVED[source.question] for source in step.sources.values()} <= {1}
        assert {source.reward for source in step.sources.values()} <= {1.0}
    found = [[run.metrics[i][f"experience/{name}"] for name in ("added", "newly_retired")] for i in (1, 2, 3)]
    assert found == [[1, 2], [2, 0], [2, 1]]
