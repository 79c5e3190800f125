"""Replay of responses with tool turns through the real stack: Ray, TransferQueue, verl's tool loop, vLLM and FSDP2."""

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from data.make_tool_task import encode_reply
from data.tool_task import calculate
from recipe.exgrpo.checkpoint.stored import Stored

pytestmark = [pytest.mark.stack, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
K, B, STEPS = 8, 8, 4
REPLY = "\ntool\n"  # how a tool's answer begins in verl's dump, which leaves special tokens out


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tool") / "run"
    run = toy(folder, STEPS, f"trainer.save_freq={STEPS}", script="qwen3-4b_tool_exgrpo")
    assert run.code == 0, run.output[-4000:]
    return run


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "data/tool/model")


def stored_rows(run, step: int) -> list[dict]:
    """The rows of a step that were replayed: the last of each planned question's K."""
    return [
        row for row in run.rows(step) if row["uid"].startswith("replay") and row["uid"].split("_")[-2] == str(K - 1)
    ]


def fresh_successes(run, steps: range) -> set[tuple[str, str]]:
    found = set()
    for step in steps:
        replayed = {row["uid"] for row in stored_rows(run, step)}
        found |= {(r["input"], r["output"]) for r in run.rows(step) if r["score"] > 0.5 and r["uid"] not in replayed}
    return found


def test_responses_hold_what_the_calculator_answered(run):
    texts = [row["output"] for step in range(1, STEPS + 1) for row in run.rows(step)]
    calls = 0
    for text in texts:
        turns = text.split(REPLY)
        calls += len(turns) - 1
        for turn, following in itertools.pairwise(turns):
            expression = turn.rpartition('"expression": "')[2].removesuffix('"}}</tool_call>')
            assert following.startswith(calculate(expression) + "\n")
    assert calls > len(texts) / 4


def test_replayed_rows_are_the_planned_ones(run):
    replayed = 0
    for step in range(1, STEPS + 1):
        rows, metrics = stored_rows(run, step), run.metrics[step]
        assert len(rows) == metrics["experience/replayed_questions"]
        assert {(row["input"], row["output"]) for row in rows} <= fresh_successes(run, range(1, step))
        replayed += len(rows)
    assert replayed > 0


def test_metrics_count_the_tools_tokens_of_what_was_replayed_and_nothing_else(run, tokenizer):
    """In step 1 nothing is stored yet: both are zero."""
    each = len(encode_reply(tokenizer, "14"))
    assert run.metrics[1]["experience/tool_tokens"] == run.metrics[1]["experience/turns_mean"] == 0
    for step in range(1, STEPS + 1):
        rows, metrics = stored_rows(run, step), run.metrics[step]
        calls = [row["output"].count(REPLY) for row in rows]
        assert metrics["experience/tool_tokens"] == each * sum(calls)
        assert metrics["experience/turns_mean"] == pytest.approx(np.mean([2 * n + 2 for n in calls]) if calls else 0)
        assert metrics["batch/tool_failures"] == 0
        assert metrics["batch/turns_mean"] > 2
    assert sum(run.metrics[step]["experience/tool_tokens"] for step in run.metrics) > 0


def test_the_store_knows_whose_tokens_are_whose(run, tokenizer):
    buffer = Stored.open(run.folder / f"global_step_{STEPS}").buffer()
    by_calls = defaultdict(int)
    for question in buffer.questions():
        for row in buffer.rows(question):
            trajectory = buffer.trajectory(int(row))
            text = tokenizer.decode(trajectory.token_ids, skip_special_tokens=True)
            given = tokenizer.decode(trajectory.token_ids[~trajectory.mask], skip_special_tokens=True)
            replies = [part.partition("\n")[0] for part in text.split(REPLY)[1:]]
            assert given == "".join(f"{REPLY}{reply}\nassistant\n" for reply in replies)
            assert (trajectory.log_probs[~trajectory.mask] == 0).all()
            assert (trajectory.log_probs[trajectory.mask] < 0).any()
            by_calls[len(replies)] += 1
    assert sum(count for calls, count in by_calls.items() if calls) > 0


def test_the_trainers_log_probs_are_the_engines_on_the_models_own_tokens(run):
    assert all(row["training/rollout_probs_diff_max"] < 1e-4 for row in run.metrics.values())
