"""Human solutions of GSM8K as expert traces for SmolLM2-135M, through import, export and the real stack.

Needs files that are not in the repository: ../shared/data/gsm8k, and the model that scripts/run_exgrpo_smollm2_cpu.sh fetches
(outputs/models/SmolLM2-135M-Instruct, or the folder named by SMOLLM2).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recipe.exgrpo.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS = ROOT.parent / "shared" / "data" / "gsm8k"
MODEL = Path(os.environ.get("SMOLLM2", ROOT / "outputs" / "models" / "SmolLM2-135M-Instruct"))
pytestmark = [
    pytest.mark.stack,
    pytest.mark.long,
    pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason=f"no SmolLM2-135M in {MODEL}"),
    pytest.mark.skipif(not SOLUTIONS.is_dir(), reason=f"no GSM8K in {SOLUTIONS}"),
]
N, B, K, STEPS = 24, 4, 4, 2
SHORT = 130  # characters: well within the script's 96 tokens


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory):
    """A folder as `../shared/data/gsm8k`, of so many questions with short solutions."""
    folder = tmp_path_factory.mktemp("gsm8k")
    for name, n in (("train", N), ("test", 4)):
        rows = (json.loads(line) for line in (SOLUTIONS / f"{name}.jsonl").open(encoding="utf-8"))
        short = [row for row in rows if len(row["answer"]) < SHORT][:n]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    return folder


@pytest.fixture(scope="module")
def solutions(gsm8k):
    """By question."""
    return {row["question"]: row["answer"] for row in map(json.loads, (gsm8k / "train.jsonl").open())}


@pytest.fixture(scope="module")
def data(gsm8k):
    out = gsm8k / "parquet" / "gsm8k_train.parquet"
    command = [sys.executable, "data/prepare_train.py", "--dataset", "gsm8k", "--template", "plain", "--out", str(out)]
    subprocess.run([*command, "--source", str(gsm8k / "train.jsonl")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="module")
def state(gsm8k, data, solutions):
    """All of them imported and scored, as solved once in K, with a wrong one and one of another question left out."""
    first = next(iter(solutions))
    rows = [{"problem": q, "solution": a, "latest_count": 1, "state_group_size": K} for q, a in solutions.items()]
    rows += [{"problem": first, "solution": "#### -1"}, {"problem": "1 + 1?", "solution": "#### 2"}]
    (gsm8k / "human.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["--run", "scripts/run_exgrpo_smollm2_cpu.sh", "--data", str(data), "--model", str(MODEL)]
    assert main(["experience", "import", str(gsm8k / "human.jsonl"), "--into", str(gsm8k / "state"), *run]) == 0
    return gsm8k / "state"


def trained(folder: Path, gsm8k: Path, traces: Path, method: str) -> tuple[dict[int, dict], dict[int, list[dict]]]:
    """Metrics and rows of every step, as verl dumps them, of a run that starts from `traces`."""
    env = {
        "RUN": folder,
        "STEPS": STEPS,
        "PYTHON": sys.executable,
        "MODEL": MODEL,
        "GSM8K": gsm8k,
        "DATA": gsm8k / "parquet",
    }
    settings = (
        f"method={method}",
        f"exgrpo.experience.init_from=[{traces}]",
        f"trainer.rollout_data_dir={folder}/rollouts",
    )
    run = subprocess.run(
        ["bash", "scripts/run_exgrpo_smollm2_cpu.sh", *settings],
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in env.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    metrics = {row["step"]: row for row in map(json.loads, (folder / "metrics.jsonl").open())}
    rows = {step: list(map(json.loads, (folder / "rollouts" / f"{step}.jsonl").open())) for step in range(1, STEPS + 1)}
    return metrics, rows


def human(rows: list[dict], solutions: dict[str, str]) -> list[dict]:
    """Rows of an update that a human wrote, each an answer to its own question."""
    found = [row for row in rows if row["output"] in solutions.values()]
    assert all(next(a for q, a in solutions.items() if q in row["input"]) == row["output"] for row in found)
    return found


def test_solutions_go_in_and_come_out_as_they_were_written(state, data, solutions, tmp_path):
    out = tmp_path / "sft.parquet"
    assert main(["experience", "export", str(state), "--as", "sft", "--data", str(data), "--out", str(out)]) == 0
    found = [[message["content"] for message in messages] for messages in pd.read_parquet(out)["messages"]]
    assert len(found) == N
    for prompt, answer in found:
        assert next(a for q, a in solutions.items() if q in prompt) == answer


def test_luffy_trains_on_one_solution_in_every_group(tmp_path, gsm8k, data, solutions):
    metrics, rows = trained(tmp_path / "run", gsm8k, gsm8k / "train.jsonl", "luffy")
    for step in range(1, STEPS + 1):
        found = human(rows[step], solutions)
        assert (len(rows[step]), len(found), {row["score"] for row in found}) == (B * K, B, {1.0})
        names = ("imported_trajectories", "guided_groups", "replayed_rows")
        assert [metrics[step][f"experience/{name}"] for name in names] == [N, B, B]
        assert 0.2 < metrics[step]["actor/replay_ratio_mean"] < 0.8  # pi itself: pi_past is 1
        assert metrics[step]["actor/grad_norm"] > 0


def test_exgrpo_replays_imported_solutions_against_the_start_policy(tmp_path, gsm8k, state, solutions):
    metrics, rows = trained(tmp_path / "run", gsm8k, state, "exgrpo")
    for step in range(1, STEPS + 1):
        found = human(rows[step], solutions)
        assert (len(rows[step]), len(found)) == (B * K, B // 2)  # rho of the batch
        names = ("imported_trajectories", "replayed_questions", "replayed_rows")
        assert [metrics[step][f"experience/{name}"] for name in names] == [N, B // 2, B // 2]
    assert abs(metrics[1]["actor/replay_ratio_mean"] - 1) < 0.1  # scored by the policy that step 1 starts with
