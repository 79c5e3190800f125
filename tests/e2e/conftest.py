"""Runs of the real stack (Ray, TransferQueue, FSDP2, vLLM) on the embedded toy task, shared between end-to-end tests."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 480

# Small and quick: replay from the first step it can, two updates per step, fixed sampling seeds, every row dumped.
QUICK = (
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "exgrpo.start_threshold=null",
    "exgrpo.runtime.seeded_rollouts=true",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
)
# A review of the retired after every third step.
REVIEW = ("exgrpo.bookkeeping.review_interval=3", "exgrpo.bookkeeping.review_share=0.5")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, exit code, console output and script ("" is the CPU launch script)."""

    folder: Path
    code: int
    output: str
    script: str
    overrides: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[int, dict]:
        """Metrics by step."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return {row["step"]: row for row in rows}

    def rows(self, step: int) -> list[dict]:
        """verl's own dump of the rows trained on: `uid` (the row's key), `input`, `output`, `score`."""
        return [json.loads(line) for line in (self.folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def run_toy(folder: Path, steps: int, *overrides: str, script: str = "", limit_s: float = LIMIT_S) -> Run:
    """Train on the toy task: by the CPU launch script a user would call, or by an experiment's `script` with TINY=1."""
    env = os.environ | {"RUN": str(folder), "STEPS": str(steps), "PYTHON": sys.executable}
    size = (f"trainer.total_training_steps={steps}", f"trainer.rollout_data_dir={folder}/rollouts")
    if script:
        env["TINY"] = "1"
    command = ["bash", f"scripts/{script or 'run_exgrpo_toy_cpu'}.sh", *QUICK, *size, *overrides]
    process = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s
    )
    return Run(folder, process.returncode, process.stdout, script, overrides)


@pytest.fixture(scope="session")
def toy():
    """toy(folder, steps, *overrides, script=...) -> Run, a finished run of a script."""
    return run_toy


@pytest.fixture(scope="session")
def replay_run(tmp_path_factory) -> Run:
    """Six steps of ExGRPO, by the script of an ablation that only widens the bucket weights (one start for both).

    A checkpoint after every second step and a review of the retired after every third.
    """
    folder, script = tmp_path_factory.mktemp("replay") / "run", "ablations/sigma_1.5"
    run = run_toy(folder, 6, "trainer.save_freq=2", *REVIEW, script=script)
    assert run.code == 0, run.output[-4000:]
    return run
