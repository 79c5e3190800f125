"""Zero-variance refill through the real stack: past successes stand where such groups stood, a checkpoint has the rest."""

import pytest

from recipe.exgrpo.checkpoint.stored import Stored

pytestmark = [pytest.mark.stack, pytest.mark.long]
# Groups of four have no variance often enough for every step to have places to take.
K, B, STEPS = 4, 12, 4
SMALL_GROUPS = (
    f"actor_rollout_ref.rollout.n={K}",
    f"data.train_batch_size={B}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=6",
)
# As models of any size are trained: log-probs are bfloat16 then, those of stored trajectories too.
BFLOAT16 = "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16"


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refill") / "run"
    run = toy(folder, STEPS, "exgrpo.policy=refill", BFLOAT16, *SMALL_GROUPS, f"trainer.save_freq={STEPS}")
    assert run.code == 0, run.output[-4000:]
    return run


def placed(run, step):
    return [(row["input"], row["output"]) for row in run.rows(step) if row["uid"].startswith("refill")]


def fresh_successes(run, steps):
    rows = (row for step in steps for row in run.rows(step) if not row["uid"].startswith("refill"))
    return {(row["input"], row["output"]) for row in rows if row["score"] == 1}


def test_rows_of_zero_variance_groups_are_exchanged_for_earlier_successes(run):
    total = 0
    for step in range(1, STEPS + 1):
        row, rows = run.metrics[step], placed(run, step)
        freed = row["experience/freed_rows"]
        assert len(run.rows(step)) == B * K
        assert len(rows) == row["experience/replayed_rows"] <= freed == K * row["experience/zero_variance_groups"]
        assert row["experience/zero_variance_groups"] == row["batch/solve_all"] + row["batch/solve_none"]
        assert row["batch/rows_out_of_update"] == freed - len(rows)
        assert set(rows) <= fresh_successes(run, range(1, step))
        total += len(rows)
    assert run.metrics[1]["experience/replayed_rows"] == 0  # nothing is past in the first step
    assert total > 0


def test_no_row_drops_out_of_what_transfer_queue_knows(run):
    """It refuses a field's second dtype with a line in the log and goes on, until a batch has no other row."""
    assert "Error updating production status" not in run.output


def test_every_metric_moves_and_planned_questions_stay_out(run):
    rows = [run.metrics[step] for step in range(1, STEPS + 1) if run.metrics[step]["experience/replayed_rows"]]
    assert rows
    for row in rows:
        assert row["experience/replay_active"] == 1
        assert 1 <= row["experience/age_steps_mean"] <= row["experience/age_steps_max"] < STEPS
        assert 1 <= row["experience/reuse_mean"] <= row["experience/reuse_max"] <= 3
        assert 1 <= row["experience/drawn_groups"] <= row["experience/replayed_rows"]
        assert row["experience/buffer_questions"] <= row["experience/buffer_trajectories"]
        assert 0.5 < row["actor/replay_ratio_mean"] < 2
        assert 0 < row["actor/replay_ess"] <= 1
        assert row["timing_s/experience"] > 0
        assert row["timing_s/score_candidates"] == row["experience/scoring_calls"] == 0  # no scoring pass
    assert all(run.metrics[s]["batch/questions"] == B for s in run.metrics)  # all groups count, exchanged ones too
    off = ("planned_questions", "replayed_questions", "skipped_replays", "retired_questions", "candidates_scored")
    assert not any(row[f"experience/{name}"] for row in run.metrics.values() for name in off)


def test_the_checkpoint_holds_the_store(run):
    stored = Stored.open(run.folder / f"global_step_{STEPS}")
    assert stored.verify() == []
    assert stored.fingerprint["policy"] == "refill"
    assert stored.extra["replay_active"] is True
    store, row = stored.buffer(), run.metrics[STEPS]
    trajectories = [store.trajectory(int(handle)) for handle in store.candidates().row]
    assert len(trajectories) == row["experience/buffer_trajectories"] > 0
    assert store.stats(STEPS)["questions"] == row["experience/buffer_questions"]
    for trajectory in trajectories:
        assert len(trajectory.prompt_ids) > 0
        assert 1 <= trajectory.provenance.successes < trajectory.provenance.size == K
        assert trajectory.use_count < 3
