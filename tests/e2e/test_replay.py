"""ExGRPO through the real stack: what is replayed is what was planned and stored, and the metrics say so."""

import math
import shutil
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.report.glossary import OURS, sentence_of

pytestmark = pytest.mark.stack
ROOT = Path(__file__).resolve().parents[2]
K, B = 8, 8


def groups(run, step: int) -> dict[str, dict[int, dict]]:
    """Rows of a step by uid and session."""
    found: dict[str, dict[int, dict]] = defaultdict(dict)
    for row in run.rows(step):
        uid, session, _ = row["uid"].rsplit("_", 2)
        found[uid][int(session)] = row
    return dict(found)


def replayed(run, step: int) -> list[tuple[str, str]]:
    """(prompt, response) of the replayed trajectories of a step, in the order they were planned."""
    planned = {uid: group for uid, group in groups(run, step).items() if uid.startswith("replay")}
    ordered = sorted(planned, key=lambda uid: int(uid.split("x")[1]))
    return [(planned[uid][K - 1]["input"], planned[uid][K - 1]["output"]) for uid in ordered]


def fresh_rows(run, steps: range, above: float) -> set[tuple[str, str]]:
    """(prompt, response) of this run's own rollouts with a score above a bar."""
    return {
        (row["input"], row["output"])
        for step in steps
        for uid, group in groups(run, step).items()
        for session, row in group.items()
        if row["score"] > above and not (uid.startswith("replay") and session == K - 1)
    }


def fresh_successes(run, steps: range) -> set[tuple[str, str]]:
    return fresh_rows(run, steps, above=0.5)


def test_replay_starts_and_every_metric_moves(replay_run):
    metrics = replay_run.metrics
    assert metrics[1]["experience/replayed_questions"] == 0
    assert metrics[1]["experience/added"] > 0
    for step in range(2, 7):
        row = metrics[step]
        assert 0 < row["experience/replayed_questions"] <= B // 2
        assert row["experience/candidates_scored"] >= row["experience/replayed_questions"]
        assert 1.0 <= row["experience/scoring_waste"] <= 1.1
        assert row["experience/selected_entropy_mean"] > 0
        assert row["experience/age_steps_max"] >= row["experience/age_steps_mean"] >= 1
        assert row["timing_s/score_candidates"] > 0
        assert row["timing_s/experience"] > 0
        assert 0.5 < row["actor/replay_ratio_mean"] < 2
        assert 0.5 < row["actor/replay_shaped_mean"] < 1
        assert 0 < row["actor/replay_ess"] <= 1
        assert row["actor/grad_norm"] > 0
        assert row["training/rollout_probs_diff_max"] < 1e-4  # fresh rows only: stored ones are from older weights
    buckets = sum(metrics[6][f"experience/bucket/{k}"] for k in range(1, K))
    assert 0 < buckets <= metrics[6]["experience/buffer_questions"]


@pytest.mark.parametrize("step", range(1, 7))
def test_every_group_has_k_rows_and_replayed_groups_exactly_one_stored_trajectory(replay_run, step):
    found = groups(replay_run, step)
    assert len(found) == B
    assert all(sorted(group) == list(range(K)) for group in found.values())
    assert all(len({row["input"] for row in group.values()}) == 1 for group in found.values())
    stored = replayed(replay_run, step)
    assert len(stored) == replay_run.metrics[step]["experience/replayed_questions"]
    assert set(stored) <= fresh_successes(replay_run, range(1, step))
    assert len({prompt for prompt, _ in stored}) == len(stored)
    prompts = [next(iter(group.values()))["input"] for group in found.values()]
    assert len(set(prompts)) == B  # a question at most once per step, fresh or replayed


def test_retired_questions_are_in_the_batch_again_when_it_is_time(replay_run):
    retired = waiting = 0
    for step, row in sorted(replay_run.metrics.items()):
        reviewed = min(waiting, B - int(row["experience/planned_questions"]))
        assert row["experience/reviewed"] == reviewed
        assert sum(uid.startswith("planned") for uid in groups(replay_run, step)) == reviewed
        waiting, retired = waiting - reviewed, retired - reviewed + row["experience/newly_retired"]
        assert row["experience/retired_questions"] == retired
        waiting += 0 if step % 3 else math.ceil((retired - waiting) / 2)
    assert any(row["experience/reviewed"] for row in replay_run.metrics.values())


def test_the_checkpoint_holds_what_the_metrics_say_and_what_was_generated(replay_run):
    checkpoint = Stored.open(replay_run.folder / "global_step_6")
    buffer = checkpoint.buffer()
    row, stats = replay_run.metrics[6], buffer.stats(6)
    assert stats["questions"] == row["experience/buffer_questions"] > 0
    assert stats["trajectories"] == row["experience/buffer_trajectories"] > 0
    assert stats["retired"] == row["experience/retired_questions"]
    assert checkpoint.extra["replay_active"] is True
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/toy/model")
    texts = {output for _, output in fresh_successes(replay_run, range(1, 7))}
    for question in buffer.questions():
        for handle in buffer.rows(question):
            trajectory = buffer.trajectory(int(handle))
            assert tokenizer.decode(trajectory.token_ids, skip_special_tokens=True) in texts
            assert (trajectory.log_probs <= 0).all()
            assert trajectory.reward == 1


@pytest.mark.long
def test_a_resumed_run_plans_what_the_uninterrupted_run_planned(toy, replay_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(
        replay_run.folder, folder, ignore=shutil.ignore_patterns("global_step_6", "global_step_2", "rollouts")
    )
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    resumed = toy(folder, 5, *replay_run.overrides, "trainer.save_freq=-1", script=replay_run.script)
    assert resumed.code == 0, resumed.output[-4000:]
    assert sorted(resumed.metrics) == [1, 2, 3, 4, 5]
    assert replayed(resumed, 5) == replayed(replay_run, 5) != []
    inputs = [{row["input"] for row in run.rows(5)} for run in (resumed, replay_run)]
    assert inputs[0] == inputs[1]


@pytest.mark.long
def test_off_means_off_and_the_gradient_guard_skips(toy, tmp_path):
    guard = ("exgrpo.runtime.max_grad_norm=1e-12", "trainer.save_freq=2")
    # More prompts than vLLM takes at once: none may be cut, or vLLM's CPU worker dies of a request with a seed (see cpu.yaml).
    crowd = "actor_rollout_ref.rollout.max_num_batched_tokens=256"
    short = "data.max_response_length=30"  # some responses end at the limit, longer ones are cut off there
    run = toy(tmp_path / "run", 2, *guard, crowd, short, script="qwen2.5-math-1.5b_on_policy")
    assert run.code == 0, run.output[-4000:]
    for step in (1, 2):
        row = run.metrics[step]
        assert {name: value for name, value in row.items() if name.startswith("experience/") and value} == {}
        assert {name: value for name, value in row.items() if name.startswith("actor/replay") and value} == {}
        assert row["timing_s/score_candidates"] == 0
        assert row["batch/pass_rate"] > 0
        assert (
            0 < row["reward/truncated/mean"] < row["response_length/clip_ratio"]
        )  # the reward was told by verl's loop
        assert row["actor/skipped_updates"] == 2  # two updates a step, all above the absurd bound
        assert replayed(run, step) == []
    assert not list(run.folder.glob("global_step_*/experience"))
    assert (run.folder / "global_step_2/actor").is_dir()


@pytest.mark.long
def test_continuous_rewards_on_two_ranks(toy, tmp_path):
    """Buckets from the spread of rewards (section 5.3); a rule with partial credit stands in for the reward model."""
    run = toy(tmp_path / "run", 3, "trainer.n_gpus_per_node=2", "trainer.save_freq=-1", script="continuous_reward")
    assert run.code == 0, run.output[-4000:]
    assert any(0 < row["score"] < 1 for row in run.rows(1))
    assert run.metrics[1][f"experience/bucket/{K - 1}"] >= 1  # the widest spread of the batch, solved 7 of 8 or not
    for step in (2, 3):
        assert run.metrics[step]["experience/replayed_questions"] > 0
        assert run.metrics[step]["experience/scoring_waste"] >= 1  # candidates are padded to a multiple of two ranks
        assert run.metrics[step]["experience/retired_questions"] == 0  # whatever was solved by all
        found = groups(run, step)
        assert all(sorted(group) == list(range(K)) for group in found.values())
        assert set(replayed(run, step)) <= fresh_rows(run, range(1, step), above=0.0)


def test_every_metric_of_a_run_has_its_sentence_and_every_sentence_of_ours_its_metric(replay_run):
    """What docs/metrics.md promises, held against a run (without validation)."""
    logged = {name for row in replay_run.metrics.values() for name in row}
    assert [name for name in sorted(logged) if sentence_of(name) is None] == []
    unlogged = {name for name in OURS if not any(fnmatchcase(found, name) for found in logged)}
    assert unlogged == {"val/pass_rate", "val/*/pass_rate"} & set(OURS)
