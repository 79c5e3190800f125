"""Whole runs whose rollouts have tool turns: under every policy an update is that of the model's own tokens, against float64.

Masks come from the script, log-probs from the weights; of the trainer nothing is read but which rows an update had, and their
advantages. The lengths are ragged, some rollouts have no tool turn, and the micro-batches are verl's, by tokens.
"""

import dataclasses

import numpy as np
import pytest
import torch
from oracle import Float64, Objective, Row, gradient
from whole_runs import SOLVED, B, K, Run, response_of

from recipe.exgrpo.checkpoint.stored import Stored

pytestmark = pytest.mark.verl

HORIZON = 64  # data.max_response_length of hardware=tiny
MOVING = (
    "actor_rollout_ref.actor.ppo_epochs=2", "actor_rollout_ref.actor.optim.lr=5e-4", "trainer.save_freq=-1",
    "exgrpo.start_threshold=null",
)  # fmt: skip
# What each method does to stored rows in the loss.
SHAPED = {"exgrpo": "policy"}
REPLAYING = ("exgrpo", "refill", "headroom", "anchored", "repo", "rescue", "su01")


def mask_of(question: str, step: int, session: int) -> tuple[int, ...]:
    """A tool's answer in the middle of every response with room for it, but for the last session's."""
    length = len(response_of(question, step, session))
    tool = 0 if session == K - 1 else max(0, length - 2 - (step + session) % 2)
    return (1,) * (length - tool - 1) + (0,) * tool + (1,)


def failing_later(question: str, step: int, session: int) -> float:
    """As the script has it, and q5 fails altogether from step 4 on."""
    return float(session < (0 if step > 3 else SOLVED[question]))


SCRIPTS = {"rescue": {"reward": failing_later}}


def rows_of(run: Run, step: int, model: Float64) -> list[Row]:
    """The rows of an update, with masks of the script, log-probs of its weights, and the advantages that they had."""
    starts = {update.step: update.weights for update in reversed(run.group.updates)}
    known = {tuple(one.response): one for one in run.script.rollouts.values()}
    found = []
    for key, fields in run.group.fields[step].items():
        if key.startswith("pad") or float(fields.get("in_update", 1)) == 0:
            continue
        source = known[tuple(fields["responses"].tolist())]
        row = Row(
            source.prompt, source.response, source.reward, advantage=fields["advantages"].double(), mask=source.mask
        )
        if key not in run.script.rollouts:
            assert source.step < step
            row = dataclasses.replace(row, past=model.at(starts[source.step]).log_probs(row, 1.0))
        found.append(row)
    return found


def check(run: Run, model: Float64, shaping: str) -> int:
    """Every update has the oracle's gradient, every row the script's mask and turns; returns replayed tool tokens."""
    tool_tokens = 0
    for step, metrics in run.metrics.items():
        updates = [update for update in run.group.updates if update.step == step]
        rows = rows_of(run, step, model)
        now = model.at(updates[0].weights)
        old = {id(row): now.log_probs(row, 1.0) for row in rows}
        size = run.group.sequences[step] or B * K
        objective = Objective(rows=size, horizon=HORIZON, shaping=shaping)
        for update in updates:
            found = gradient(model.at(update.weights), [rows], old, objective).gradient
            off = sum(float((update.gradient[n].double() - g).square().sum()) for n, g in found.items())
            assert off <= 1e-6 * sum(float(g.square().sum()) for g in found.values()), f"step {step}"
        stored = [row for row in rows if row.past is not None]
        check_rows(run, step)
        assert metrics["experience/replayed_rows"] == len(stored)
        assert metrics["experience/tool_tokens"] == sum(row.mask.count(0) for row in stored)
        turns = [len("".join(map(str, row.mask)).replace("0", " ").split()) * 2 for row in stored]
        assert metrics["experience/turns_mean"] == pytest.approx(np.mean(turns) if turns else 0)
        tool_tokens += sum(row.mask.count(0) for row in stored)
    return tool_tokens


def check_rows(run: Run, step: int) -> None:
    """All rows of a batch say the same of whose tokens they have, to every reader."""
    known = {tuple(one.response): one for one in run.script.rollouts.values()}
    for key, fields in run.group.fields[step].items():
        if key.startswith("pad"):
            continue
        mask = known[tuple(fields["responses"].tolist())].mask
        for name in ("response_mask", "loss_mask"):
            assert fields[name].tolist() == list(mask), (key, name)
        own = torch.tensor(mask).bool()
        assert not fields["advantages"][~own].any()
        assert not fields["rollout_log_probs"][~own].any()
        turns = int(getattr(fields["num_turns"], "data", fields["num_turns"]))
        assert turns == 2 * len("".join(map(str, mask)).replace("0", " ").split())


def test_exgrpo(runs, model):
    run = runs("exgrpo", 4, *MOVING, mask=mask_of)
    assert check(run, model, "policy") > 0
    for step, metrics in run.metrics.items():
        stored = [row for row in rows_of(run, step, model) if row.past is not None]
        start = next(update.weights for update in run.group.updates if update.step == step)
        entropies = [model.at(start).mean_entropy(row, 1.0) for row in stored]
        expected = pytest.approx(np.mean(entropies) if entropies else 0, rel=1e-3)
        assert metrics["experience/selected_entropy_mean"] == expected


def test_refill(runs, model):
    assert check(runs("refill", 4, *MOVING, "method=refill", mask=mask_of), model, "clip") > 0


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name in REPLAYING if name not in ("exgrpo", "refill")])
def test_other_policies(runs, model, method):
    run = runs(
        method, 5, *MOVING, f"method={method}", "exgrpo.rows.max_drift=1e9", mask=mask_of, **SCRIPTS.get(method, {})
    )
    assert check(run, model, SHAPED.get(method, "clip")) > 0


@pytest.mark.long
@pytest.mark.parametrize("method", ["masked", "prompts", "grpo", "on_policy"])
def test_policies_that_replay_no_rows(runs, model, method):
    run = runs(f"{method}0", 3, *MOVING, f"method={method}", mask=mask_of)
    for step, metrics in run.metrics.items():
        check_rows(run, step)
        assert metrics["experience/tool_tokens"] == metrics["experience/turns_mean"] == 0


def test_masks_are_saved_and_replayed_after_a_resume(runs, model):
    settings = (*MOVING, "trainer.save_freq=1")
    runs("saved", 2, *settings, mask=mask_of)
    run = runs("saved", 4, *settings, mask=mask_of)
    buffer = Stored.open(run.folder / "global_step_2").buffer()
    stored = [buffer.trajectory(row) for row in buffer.candidates().row.tolist()]
    by_ids = {tuple(response_of(q, s, i)): mask_of(q, s, i) for q in SOLVED for s in (1, 2) for i in range(K)}
    assert any(not one.mask.all() for one in stored)
    for one in stored:
        assert tuple(one.mask.astype(int).tolist()) == by_ids[tuple(one.token_ids.tolist())]
    replayed = [key for key, f in run.group.fields[3].items() if float(f["is_replayed"])]
    assert replayed
    for key in replayed:
        fields = run.group.fields[3][key]
        assert tuple(fields["response_mask"].tolist()) == by_ids[tuple(fields["responses"].tolist())]
