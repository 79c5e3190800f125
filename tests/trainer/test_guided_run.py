"""Experience from elsewhere in whole runs: read, graded and scored at the start, trained on by LUFFY and RLEP, against float64.

The traces' ids, rewards and behaviour are made here by hand; of the trainer nothing is read but which rows an update had.
"""

import dataclasses
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from oracle import Float64, Objective, Row, gradient
from transformers import AutoTokenizer
from whole_runs import MODEL, SOLVED, B, K, Run, prompt_of

from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.experience.traces import BadTrace

pytestmark = pytest.mark.verl

HORIZON = 64  # data.max_response_length of hardware=tiny
MOVING = ("actor_rollout_ref.actor.ppo_epochs=2", "actor_rollout_ref.actor.optim.lr=5e-4")
UNSAVED = "trainer.save_freq=-1"
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
GUIDED = [f"q{i}" for i in (0, 1, 3, 4, 6, 9, 11)]  # the others have no trace


def texts_of(question: str) -> list[str]:
    """The traces of a question that its reward accepts."""
    return [
        f"{words} \\boxed{{{question}}}" for words in ("so", "it must be", "thus")[: 1 + (question in ("q1", "q4"))]
    ]


def ids_of(text: str) -> list[int]:
    return [*TOKENIZER(text, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Right ones of some questions, a wrong one, one of no question of the run."""
    rows = [{"question_id": q, "response": text} for q in GUIDED for text in texts_of(q)]
    rows += [{"question_id": "q2", "response": "\\boxed{q3}"}, {"question_id": "q99", "response": "\\boxed{q99}"}]
    path = tmp_path_factory.mktemp("traces") / "teacher.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def groups_of(run: Run, step: int, past) -> list[list[Row]]:
    """Rows of an update by group; traces are recognised by their ids, and `past(row)` is their behaviour."""
    known = {tuple(ids_of(text)): (q, text) for q in GUIDED for text in texts_of(q)}
    groups = defaultdict(list)
    for key, response in run.group.rows[step].items():
        uid, session, _ = key.rsplit("_", 2)
        if key in run.script.rollouts:
            rollout = run.script.rollouts[key]
            groups[uid].append(Row(rollout.prompt, response, rollout.reward))
        else:
            question, _ = known[tuple(response)]
            row = Row(prompt_of(question), response, 1.0)
            groups[uid].append(dataclasses.replace(row, past=past(row)))
            sibling = next(r for k, r in run.script.rollouts.items() if k.startswith(f"{uid}_"))
            assert sibling.question == question
            assert int(session) >= K - 2
    return list(groups.values())


def check(run: Run, model: Float64, past, per_group: int, **changes) -> None:
    """Every update has the oracle's gradient, every group its traces, and the metrics say so."""
    objective = dataclasses.replace(Objective(rows=B * K, horizon=HORIZON), **changes)
    for step, metrics in run.metrics.items():
        updates = [update for update in run.group.updates if update.step == step]
        now = model.at(updates[0].weights)
        groups = groups_of(run, step, lambda row, now=now: past(now, row))
        old = {id(row): now.log_probs(row, 1.0) for group in groups for row in group}
        questions = {tuple(prompt_of(q)): q for q in SOLVED}
        for group in groups:
            question = questions[tuple(group[0].prompt)]
            expected = min(per_group, len(texts_of(question))) if question in GUIDED else 0
            assert (len(group), sum(row.past is not None for row in group)) == (K, expected)
        replayed = sum(row.past is not None for group in groups for row in group)
        assert replayed > 0
        assert metrics["experience/replayed_rows"] == replayed
        assert metrics["experience/guided_groups"] == sum(any(r.past is not None for r in g) for g in groups)
        for update in updates:
            found = gradient(model.at(update.weights), groups, old, objective).gradient
            off = sum(float((update.gradient[n].double() - g).square().sum()) for n, g in found.items())
            size = sum(float(g.square().sum()) for g in found.values())
            assert (off / size) ** 0.5 < 1e-3, f"step {step}"


def test_luffy(runs, model, traces):
    """w is pi_theta itself: the behaviour's log-probs are 0, and fresh tokens are not clipped."""
    settings = (*MOVING, UNSAVED, "method=luffy", f"exgrpo.experience.init_from=[{traces}]")
    run = runs("luffy", 3, *settings)
    check(run, model, lambda now, row: torch.zeros(len(row.response), dtype=torch.float64), 1, clips_fresh=False)
    stored = len([text for q in GUIDED for text in texts_of(q)])
    assert {m["experience/imported_trajectories"] for m in run.metrics.values()} == {stored}
    weights = run.group.updates[0].weights
    rows = [row for group in groups_of(run, 1, lambda row: torch.zeros(len(row.response))) for row in group]
    probabilities = torch.cat([model.at(weights).log_probs(r, 1.0) for r in rows if r.past is not None]).exp()
    assert float(probabilities.mean()) < 0.9  # far from 1: a weight of pi/pi would be another gradient


def test_rlep(runs, model, traces):
    """Two successes as members 3 and 4, clipped against the policy at the start of the step."""
    settings = (*MOVING, UNSAVED, "method=rlep", f"exgrpo.experience.init_from=[{traces}]")
    run = runs("rlep", 3, *settings)
    check(run, model, lambda now, row: now.log_probs(row, 1.0), 2, shaping="clip")


def test_scored_traces_weigh_against_the_start_policy(runs, model, traces):
    """Past is what the weights were before step 1, in steps after it too: the ratios leave 1."""
    run = runs(
        "scored", 3, *MOVING, UNSAVED, "method=luffy", f"exgrpo.experience.init_from=[{traces}]",
        "exgrpo.experience.importance=scored", "exgrpo.loss.fresh_clip=always",
    )  # fmt: skip
    start = run.group.updates[0].weights
    cache = {}

    def past(now, row):
        key = tuple(row.response)
        if key not in cache:
            cache[key] = Float64(MODEL).at(start).log_probs(row, 1.0)
        return cache[key]

    check(run, model, past, 1)
    assert abs(run.metrics[3]["actor/replay_ratio_mean"] - 1) > 0.01


def test_what_was_scored_at_the_start_is_saved_and_not_read_again(runs, model, traces, tmp_path):
    """ExGRPO takes traces as well; a resumed run needs their file no more."""
    path = tmp_path / "gone.jsonl"
    path.write_bytes(traces.read_bytes())
    settings = (*MOVING, "trainer.save_freq=1", "exgrpo.start_threshold=null", f"exgrpo.experience.init_from=[{path}]")
    run = runs("saved", 1, *settings)
    buffer = Stored.open(run.folder / "global_step_1").buffer()
    start, found = model.at(run.group.updates[0].weights), 0
    for handle in buffer.candidates().row.tolist():
        trajectory = buffer.trajectory(handle)
        if trajectory.origin.source == "gone":
            row = Row(prompt_of(trajectory.question), trajectory.token_ids.tolist(), 1.0)
            np.testing.assert_allclose(trajectory.log_probs, start.log_probs(row, 1.0).numpy(), atol=1e-4)
            assert trajectory.origin.behaviour == "scored"
            found += 1
    assert found == run.metrics[1]["experience/imported_trajectories"] >= len(GUIDED)
    path.unlink()
    again = runs("saved", 2, *settings)
    assert again.metrics[2]["experience/imported_trajectories"] > 0


def test_a_bad_row_ends_the_run_before_its_first_step(runs, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question_id": "q0", "response": "x"}\n{"question_id": 7}\n')
    with pytest.raises(BadTrace, match=r"bad.jsonl, line 2: no response"):
        runs("bad", 1, UNSAVED, "method=luffy", f"exgrpo.experience.init_from=[{path}]")


def test_without_traces_all_of_it_reads_zero(runs):
    run = runs("none", 1, *MOVING, UNSAVED, "method=luffy", "exgrpo.experience.init_from=[]")
    names = ("guided_groups", "imported_trajectories", "replayed_rows")
    assert [run.metrics[1][f"experience/{name}"] for name in names] == [0, 0, 0]
    assert all(key in run.script.rollouts for key in run.group.rows[1])
