"""`exgrpo evaluate` with the real vLLM: the shipped toy model's known score, kill and resume, a checkpoint merged by verl."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from data import toy_task
from verl_ext.evaluation import journal
from verl_ext.evaluation.model import find_model, merged

pytestmark = [pytest.mark.stack, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
QUESTIONS, SAMPLES, CHUNK = 128, 4, 16
KNOWN_MEAN = 0.594  # at temperature 0.6 with seed 0; another processor may round a few tokens differently


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """command(out) -> the script, on the toy model and all held-out questions."""
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, "data/make_toy.py", "data", "--out", str(folder)], cwd=ROOT, check=True)

    def build(out: Path) -> list[str]:
        where = [
            f"MODEL={ROOT}/data/toy/model",
            f"DATA={folder}/heldout.parquet",
            f"OUT={out}",
            f"PYTHON={sys.executable}",
        ]
        options = ["--max-tokens", 64, "--samples", SAMPLES, "--chunk", CHUNK]
        return ["env", "OMP_NUM_THREADS=1", *where, "bash", "scripts/evaluate.sh", *map(str, options)]

    return build


def finish(command: list[str], out: Path) -> dict[str, bytes]:
    """Run to the end; returns the files that must not depend on interruptions."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return {f.name: f.read_bytes() for f in out.iterdir() if f.name.startswith(("generations", "results"))}


def test_known_score_and_the_same_files_after_a_kill(command, tmp_path):
    whole = finish(command(tmp_path / "whole"), tmp_path / "whole")
    figures = json.loads(whole["results.json"])["benchmarks"]["toy_modular"]
    assert (figures["questions"], figures["samples"]) == (QUESTIONS, SAMPLES)
    assert figures["mean"] == pytest.approx(KNOWN_MEAN, abs=0.03)
    check_generations(list(journal.read(tmp_path / "whole")), figures["mean"])

    process = subprocess.Popen(command(tmp_path / "killed"), cwd=ROOT)
    written = tmp_path / "killed" / "generations.0.jsonl"
    wait_until(lambda: written.exists() and written.stat().st_size > 0)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    assert 0 < written.read_bytes().count(b"\n") < QUESTIONS * SAMPLES
    assert finish(command(tmp_path / "killed"), tmp_path / "killed") == whole


def check_generations(rows: list[dict], mean: float) -> None:
    """Rows in order, complete, with a score that the toy task's own grader agrees with."""
    assert [row["item"] for row in rows] == list(range(QUESTIONS * SAMPLES))
    assert all(0 < row["tokens"] <= 64 and row["finish_reason"] in ("stop", "length") for row in rows)
    assert len({row["text"] for row in rows[:SAMPLES]}) > 1  # samples of one question differ
    assert sum(row["score"]["score"] for row in rows) == pytest.approx(mean * len(rows))
    extracted = [toy_task.extract(row["text"]) or "" for row in rows]
    assert extracted == [row["score"]["extracted"] for row in rows]


def test_a_checkpoint_is_merged_once_and_is_the_trained_model(replay_run, tmp_path):
    checkpoint = find_model(str(replay_run.folder / "global_step_6"))
    assert checkpoint.name.endswith("global_step_6")
    folder = merged(checkpoint, tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert (merged(checkpoint, tmp_path) / "model.safetensors").stat().st_mtime_ns == written
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    saved = torch.load(checkpoint.folder / "model_world_size_1_rank_0.pt", weights_only=False)
    for name, weight in saved.items():
        local = weight.to_local() if hasattr(weight, "to_local") else weight
        assert torch.equal(trained[name], local.to(torch.bfloat16)), name
    assert find_model(str(replay_run.folder / "global_step_4")).fingerprint != checkpoint.fingerprint


def wait_until(condition, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
