"""`scripts/bench_reward.py` needs no argument: it takes what is there, down to the questions of the toy task."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--responses", "24", "--rounds", "1", "--workers", "1", "--json")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_reward", ROOT / "scripts" / "bench_reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_questions_without_a_file_are_the_toy_tasks(bench):
    pairs = bench.load_pairs([])
    assert len(pairs) == 512  # data/make_toy.py, TRAIN_QUESTIONS
    assert all(question.startswith("Start ") and answer.isdigit() for question, answer in pairs)


def test_the_gold_answer_of_either_kind_of_file(bench, tmp_path):
    file = tmp_path / "x.jsonl"
    lines = [{"question": "1 + 1?", "answer": "One more.\n#### 2"}, {"problem": "2 + 2?", "answer": "4"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bench.load_pairs([file]) == [("1 + 1?", "2"), ("2 + 2?", "4")]


@pytest.mark.slow
def test_it_runs_without_arguments_where_nothing_is_shared(tmp_path):
    """In a copy without a ../shared beside it."""
    for name in ("scripts/bench_reward.py", "data", "verl_ext"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tmp_path / "copy" / name)
    command = [sys.executable, tmp_path / "copy" / "scripts" / "bench_reward.py", *QUICK]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rates = json.loads(done.stdout.splitlines()[-1])
    assert rates.keys() == {"bare", "workers_1"}
    assert min(rates.values()) > 0
