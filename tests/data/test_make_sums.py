"""data/make_sums.py: the sums that a small pretrained model learns, and the script that trains on them."""

import os
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from recipe.exgrpo.checks.data import data_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.presets.compose import compose as compose_run
from verl_ext.rewards import Grader, find_rule


def make(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "data/make_sums.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rows_of(folder, split: str) -> list[dict]:
    return pq.read_table(folder / f"sums_{split}.parquet").to_pylist()


def test_splits_are_disjoint_right_and_the_same_again(tmp_path):
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        done = make("--out", folder, "--train", 300, "--test", 50)
        assert done.returncode == 0, done.stderr
        made.append([rows_of(folder, split) for split in ("train", "test")])
    assert made[0] == made[1]
    texts = [row["prompt"][-1]["content"] for part in made[0] for row in part]
    assert len(set(texts)) == 350 == len({row["extra_info"]["question_id"] for part in made[0] for row in part})
    for row in made[0][0]:
        a, b = map(int, re.fullmatch(r"What is (\d+) \+ (\d+)\?", row["prompt"][-1]["content"]).groups())
        assert row["reward_model"]["ground_truth"] == str(a + b)


def test_the_files_pass_the_check(tmp_path):
    make("--out", tmp_path, "--train", 40, "--test", 8)
    files = [f"data.train_files={tmp_path}/sums_train.parquet", f"data.val_files={tmp_path}/sums_test.parquet"]
    assert list(data_findings(Run.of(compose_run(["hardware=cpu", *files, "data.train_batch_size=4"])))) == []


def test_an_answer_needs_no_box():
    """A model of this size puts a box nowhere; its sentence must do."""
    rule, grader = find_rule("sums"), Grader()
    texts = ("14 + 15 equals 29.", "The sum is 29", "14 + 15 = 28", "29 is not it, it is 30.", "no idea")
    assert [rule(text, "29", grader).score for text in texts] == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("arguments", [("--train", 9801), ("--test", 0)])
def test_more_sums_than_there_are_is_one_sentence(arguments, tmp_path):
    done = make("--out", tmp_path / "x", *arguments)
    assert done.returncode == 2
    assert "at most 9801" in done.stderr
    assert not (tmp_path / "x").exists()


def test_the_script_refuses_another_task(tmp_path):
    env = os.environ | {"TASK": "poems", "RUN": str(tmp_path / "run"), "PYTHON": "/bin/false"}
    done = subprocess.run(
        ["bash", "scripts/run_exgrpo_smollm2_cpu.sh"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "TASK must be gsm8k or sums; got 'poems'" in done.stderr
