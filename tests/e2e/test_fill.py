"""Fill mode through the real stack: past successes stand where groups without signal stood, and the checkpoint has the rest."""

import pytest

from recipe.exgrpo.checkpoint.fill_state import load_fill, read_fill_manifest
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies.fill import FillManager

pytestmark = pytest.mark.stack
# Groups of four have no variance often enough for every step to have slots to fill.
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
    folder = tmp_path_factory.mktemp("fill") / "run"
    run = toy(folder, STEPS, "exgrpo.mode=fill", BFLOAT16, *SMALL_GROUPS, f"trainer.save_freq={STEPS}")
    assert run.code == 0, run.output[-4000:]
    return run


def filled(run, step):
    return [(row["input"], row["output"]) for row in run.rows(step) if row["uid"].startswith("fill")]


def fresh_successes(run, steps):
    rows = (row for step in steps for row in run.rows(step) if not row["uid"].startswith("fill"))
    return {(row["input"], row["output"]) for row in rows if row["score"] == 1}


def test_rows_without_signal_are_exchanged_for_earlier_successes(run):
    total = 0
    for step in range(1, STEPS + 1):
        row, rows = run.metrics[step], filled(run, step)
        assert len(run.rows(step)) == B * K
        assert len(rows) == row["fill/filled"] <= row["fill/budget"] == K * row["fill/dropped_groups"]
        assert row["fill/dropped_groups"] == row["batch/solve_all"] + row["batch/solve_none"]
        assert row["batch/dropped"] == row["fill/budget"] - row["fill/filled"]
        assert set(rows) <= fresh_successes(run, range(1, step))
        total += len(rows)
    assert run.metrics[1]["fill/filled"] == 0  # nothing is past in the first step
    assert total > 0


def test_no_row_drops_out_of_transfer_queues_books(run):
    """It refuses a field's second dtype with a line in the log and goes on, until a batch has no other row."""
    assert "Error updating production status" not in run.output


def test_every_metric_moves_and_replay_mode_stays_out(run):
    rows = [run.metrics[step] for step in range(1, STEPS + 1) if run.metrics[step]["fill/filled"]]
    assert rows
    for row in rows:
        assert row["fill/active"] == 1
        assert 1 <= row["fill/age_steps_mean"] <= row["fill/age_steps_max"] < STEPS
        assert 1 <= row["fill/uses_mean"] <= row["fill/uses_max"] <= 3
        assert row["fill/entries"] <= row["fill/trajectories"]
        assert 0.5 < row["actor/replay_ratio_mean"] < 2
        assert 0 < row["actor/replay_ess"] <= 1
        assert row["timing_s/experience"] > 0
        assert row["timing_s/score_candidates"] == row["experience/scoring_calls"] == 0  # no scoring pass
    assert all(run.metrics[s]["batch/questions"] == B for s in run.metrics)  # all groups count, exchanged ones too
    assert not any(v for row in run.metrics.values() for name, v in row.items() if name.startswith("experience/"))


def test_the_checkpoint_holds_the_pool(run):
    fill = FillManager(ExGRPOConfig(mode="fill", start_threshold=None), K)
    folder = run.folder / f"global_step_{STEPS}"
    load_fill(folder, fill, read_fill_manifest(folder / "experience/manifest.json")["fingerprint"])
    assert len(fill.entries) == run.metrics[STEPS]["fill/entries"] > 0
    assert sum(len(entry.responses) for entry in fill.entries) == run.metrics[STEPS]["fill/trajectories"]
    assert fill.active
