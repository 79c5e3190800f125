"""A policy and a rank rule from outside the package through the real stack: PYTHONPATH is all they need."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.cli.main import main

pytestmark = [pytest.mark.stack, pytest.mark.long]
EXTENSION = Path(__file__).resolve().parents[1] / "extension"
RESCUE = "outside_policy:Rescue"
# Few questions, all of them in every step: what was solved in one step and failed in the next is rescued.
K, B, STEPS = 4, 24, 3
SETTINGS = (
    f"exgrpo.policy={RESCUE}",
    "exgrpo.options={max_age_steps: 10}",
    "exgrpo.rank=outside_policy:longest",
    f"actor_rollout_ref.rollout.n={K}",
    f"data.train_batch_size={B}",
    f"data.train_max_samples={B}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=12",
    "trainer.save_freq=1",
)


@pytest.fixture(scope="module")
def outside():
    """Every process of a run can import what lies in tests/extension."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(EXTENSION))
        yield


@pytest.fixture(scope="module")
def run(outside, toy, tmp_path_factory):
    run = toy(tmp_path_factory.mktemp("outside") / "run", STEPS, *SETTINGS)
    assert run.code == 0, run.output[-4000:]
    return run


def placed(run, step: int) -> list[tuple[str, str]]:
    """(prompt, response) of the stored trajectories of a step, in batch order."""
    return [(row["input"], row["output"]) for row in run.rows(step) if row["uid"].startswith("refill")]


def fresh(run, step: int) -> dict[str, list[dict]]:
    """Rows of the step's own rollouts by prompt."""
    found = defaultdict(list)
    for row in run.rows(step):
        if not row["uid"].startswith("refill"):
            found[row["input"]].append(row)
    return dict(found)


def successes(run, steps: range, prompt: str) -> set[str]:
    """Responses to a prompt that were right in these steps."""
    return {row["output"] for step in steps for row in fresh(run, step).get(prompt, ()) if row["score"] == 1}


def test_failed_groups_are_rescued_by_their_own_earlier_successes(run):
    total = 0
    for step in range(1, STEPS + 1):
        row, rescuers, own = run.metrics[step], placed(run, step), fresh(run, step)
        assert len(run.rows(step)) == B * K
        assert len(rescuers) == row["experience/rescued_groups"] == row["experience/replayed_rows"]
        assert row["batch/rows_out_of_update"] == 0
        for prompt, response in rescuers:
            assert [other["score"] for other in own[prompt]] == [0] * (K - 1)
            assert response in successes(run, range(1, step), prompt)
        assert {len(rows) for prompt, rows in own.items() if prompt not in dict(rescuers)} == {K}
        total += len(rescuers)
    assert run.metrics[1]["experience/rescued_groups"] == 0  # nothing is past in the first step
    assert total > 0


def test_its_metrics_and_checkpoint_are_like_any_other(run):
    assert all(row["experience/replay_active"] == 1 for row in run.metrics.values())
    stored = Stored.open(run.folder / f"global_step_{STEPS}")
    assert stored.verify() == []
    assert stored.fingerprint["policy"] == RESCUE
    assert stored.extra["rescued_ever"] == sum(row["experience/rescued_groups"] for row in run.metrics.values())
    assert stored.buffer().stats(STEPS)["trajectories"] == run.metrics[STEPS]["experience/buffer_trajectories"] > 0


def test_it_is_inspected(run, capsys):
    assert main(["inspect", str(run.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"]["policy"] == RESCUE
    assert main(["inspect", str(run.folder), "--verify"]) == 0


def test_a_resumed_run_rescues_with_what_was_stored_before(run, outside, toy, tmp_path):
    """The same command again, after a loss of all but the first step."""
    folder = tmp_path / "run"
    lost = shutil.ignore_patterns("global_step_2", "global_step_3", "rollouts")
    shutil.copytree(run.folder, folder, ignore=lost)
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    resumed = toy(folder, STEPS, *SETTINGS)
    assert resumed.code == 0, resumed.output[-4000:]
    assert sorted(resumed.metrics) == [1, 2, 3]
    assert Counter(row["input"] for row in resumed.rows(2)) == Counter(row["input"] for row in run.rows(2))
    rescuers, before = dict(placed(resumed, 2)), dict(placed(run, 2))
    assert all(response in successes(run, range(1, 2), prompt) for prompt, response in rescuers.items())
    assert {prompt: rescuers[prompt] for prompt in rescuers if prompt in before} == {
        prompt: before[prompt] for prompt in rescuers if prompt in before
    }
    assert rescuers
    ever = sum(row["experience/rescued_groups"] for row in resumed.metrics.values())
    assert Stored.open(folder / f"global_step_{STEPS}").extra["rescued_ever"] == ever
