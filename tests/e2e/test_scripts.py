"""Every reproduction script, two steps with the toy model through its own `TINY=1` (the real stack on CPU)."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.presets.compose import ROOT, experiment_scripts
from recipe.exgrpo.presets.paper_settings import differences

LIMIT_S = 480
SIZES = ("data.", "actor_rollout_ref.", "trainer.", "reward.", "preset.template", "exgrpo.start_threshold")
# One script of each family runs in continuous integration: an ablation, which is the ExGRPO run too, is `replay_run`; the
# on-policy baseline and continuous rewards run in test_replay.py; these in `make test-long`. All run in `make test-scripts`.
FAMILIES = ("masked_grpo",)
# `replay_run` has them fit into six steps.
REVIEW = {"exgrpo.bookkeeping.review_interval", "exgrpo.bookkeeping.review_share"}
NAMES = [str(path.relative_to(ROOT / "scripts").with_suffix("")) for path in experiment_scripts()]
LONG = (pytest.mark.stack, pytest.mark.long)
CASES = [pytest.param(name, marks=LONG if name in FAMILIES else pytest.mark.scripts) for name in NAMES]


def run_tiny(name: str, folder: Path, *overrides: str) -> list[dict]:
    """Run scripts/<name>.sh with TINY=1 into `folder`, from where that lies; returns the rows of its metrics."""
    env = os.environ | {"TINY": "1", "RUN": str(folder), "PYTHON": sys.executable}
    process = subprocess.run(
        ["bash", ROOT / "scripts" / f"{name}.sh", *overrides],
        cwd=folder.parent,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert process.returncode == 0, process.stdout[-4000:]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_two_steps_of_every_script(name, tmp_path):
    folder = tmp_path / "a run, its name (and more)"
    rows = run_tiny(name, folder)
    assert [row["step"] for row in rows] == [1, 2]
    expect_method(expect_settings(folder), rows)


@pytest.mark.stack
def test_two_steps_of_the_ablation_that_the_other_tests_share(replay_run):
    recorded = expect_settings(replay_run.folder, overridden=REVIEW)
    assert recorded.preset.ablation == Path(replay_run.script).name
    expect_method(recorded, [replay_run.metrics[1], replay_run.metrics[2]])


@pytest.mark.scripts
def test_the_same_command_again_resumes(tmp_path):
    """Two steps, then three: the second start goes on at step 3 with the experience of the first, and has its own record."""
    run_tiny("qwen2.5-math-7b_exgrpo", tmp_path / "run")
    rows = run_tiny("qwen2.5-math-7b_exgrpo", tmp_path / "run", "trainer.total_training_steps=3")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["experience/buffer_trajectories"] >= rows[1]["experience/buffer_trajectories"] > 0
    records = sorted(path.name for path in (tmp_path / "run" / "record").iterdir())
    assert records == ["start-000", "start-001"]


def expect_settings(folder: Path, overridden: Collection[str] = ()):
    """The recorded configuration of a run, which has the paper's values at every key but sizes and `overridden` ones."""
    recorded = OmegaConf.load(folder / "record" / "start-000" / "config.yaml")
    for found in differences(recorded):
        assert found.why or found.key.startswith(SIZES) or found.key in overridden, found
    return recorded


def expect_method(config, rows: list[dict]) -> None:
    """The two steps show the method: what was collected in the first and replayed in the second."""
    first, second = rows
    policy, out = config.exgrpo.policy, "batch/rows_out_of_update"
    if policy == "masked":
        outside = first["batch/solve_all"] + first["batch/solve_none"]
        assert first[out] >= config.actor_rollout_ref.rollout.n * outside
        assert first[out] + second[out] > 0  # half the toy questions are outside any band
        assert first[out] % config.actor_rollout_ref.rollout.n == 0
    if policy in ("on_policy", "masked", "grpo", "prompts"):
        assert first["experience/buffer_trajectories"] == second["experience/replayed_rows"] == 0
        assert (first["experience/kept_prompts"] > 0) == (policy == "prompts")  # none may come before its cooldown
        return
    if policy == "rl_zvp":
        for row in rows:
            flat = row["batch/solve_all"] + row["batch/solve_none"]
            assert row["experience/shaped_rows"] == config.actor_rollout_ref.rollout.n * flat
            assert (row["experience/shaped_advantage_mean"] > 0) == (flat > 0)
        assert first["experience/shaped_rows"] > 0  # half the toy questions
        assert first["experience/buffer_trajectories"] == second["experience/replayed_rows"] == 0
        return
    if policy == "repo":
        assert first["experience/added"] > 0
        assert (
            second["experience/extra_rows"] == second["experience/replayed_rows"]
        )  # zero, where no question came again
        return
    if policy == "rescue":
        assert first["experience/added"] > 0
        assert second["experience/replayed_rows"] == second["experience/rescued_groups"]
        assert second[out] == 0
        return
    if policy in ("refill", "headroom", "anchored"):
        assert first["experience/added"] > 0
        assert first["experience/replayed_rows"] == 0
        # Every group of the second step may have had variance; test_refill.py has steps enough to see places taken for certain.
        assert second["experience/replayed_rows"] <= second["experience/freed_rows"]
        assert second[out] == second["experience/freed_rows"] - second["experience/replayed_rows"]
        return
    assert first["experience/added"] > 0 or config.exgrpo.admit == "lone_success"
    assert first["experience/planned_questions"] == 0
    assert second["experience/planned_questions"] == min(
        int(config.exgrpo.rho * config.data.train_batch_size), first["experience/buffer_questions"]
    )
    if not config.exgrpo.inject:
        assert second["experience/planned_questions"] > 0
        assert second["experience/replayed_questions"] == 0
    if config.exgrpo.bookkeeping.outcome == "reward_spread":
        assert second["experience/retired_questions"] == 0
        assert first[f"experience/bucket/{config.actor_rollout_ref.rollout.n - 1}"] >= 1  # the batch's widest spread
