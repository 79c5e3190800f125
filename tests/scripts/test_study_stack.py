"""`scripts/study_stack.sh` with a recorder in place of Python: which runs it starts, with what, and what it skips."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from recipe.exgrpo.presets.compose import compose as compose_run

ROOT = Path(__file__).resolve().parents[2]
# Records its arguments; a training run leaves metrics up to its last step, or up to STOP and fails.
RECORDER = """#!/usr/bin/env bash
echo "${PREFIX:-}$*" >> "$RECORD"
case "$*" in *recipe.exgrpo.main*) ;; *) exit 0 ;; esac
for argument in "$@"; do
  case $argument in trainer.default_local_dir=*) run=${argument#*=} ;; esac
done
run=$(tr -d "'" <<< "$run")
: > "$run/metrics.jsonl"
for step in $(seq 0 "${STOP:-$STEPS}"); do echo "{\\"step\\": $step, \\"val/pass_rate\\": 0.5}" >> "$run/metrics.jsonl"; done
[ -z "${STOP:-}" ] || { echo "what went wrong"; exit 3; }
"""


@pytest.fixture
def study(tmp_path):
    """study(*overrides, **environment) -> (process, commands that the recorder was given in this call)."""
    recorder, record = tmp_path / "python", tmp_path / "record"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)

    def call(*overrides: str, **environment: str):
        record.write_text("")
        small = {"VARIANTS": "on_policy refill", "SEEDS": "0 3", "STEPS": "12", "OUT": str(tmp_path / "out")}
        env = os.environ | small | {"PYTHON": str(recorder), "RECORD": str(record)} | environment
        command = ["bash", "scripts/study_stack.sh", *overrides]
        process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        return process, record.read_text().splitlines()

    return call


def training(commands: list[str]) -> list[str]:
    return [command for command in commands if "recipe.exgrpo.main" in command]


def test_a_run_for_each_seed_and_variant_then_the_report(study, tmp_path):
    process, commands = study("exgrpo.rho=0.25")
    assert process.returncode == 0, process.stderr
    out, runs = tmp_path / "out", training(commands)
    folders = ["on_policy-s0", "refill-s0", "on_policy-s3", "refill-s3"]
    assert [run.split("trainer.default_local_dir=")[1].split()[0] for run in runs] == [f"'{out}/{f}'" for f in folders]
    for run, folder in zip(runs, folders, strict=True):
        seed = folder[-1]
        assert f" data.seed={seed} exgrpo.runtime.seeded_rollouts=true " in run
        assert run.endswith(" exgrpo.rho=0.25")  # the user's own come last
        assert "trainer.total_training_steps=12 " in run
    assert all(" method=on_policy " in run for run in runs[::2])
    assert all(" method=refill " in run for run in runs[1::2])
    groups = " ".join(f"--group {v}={out}/{v}-s0,{out}/{v}-s3" for v in ("on_policy", "refill"))
    assert commands[-1] == f"-m recipe.exgrpo.cli.main report {groups} --against on_policy --out {out}"


def test_a_finished_run_is_skipped_and_an_interrupted_one_started_again(study, tmp_path):
    process, commands = study(STOP="7")
    assert process.returncode == 3
    assert len(training(commands)) == 1  # a failure ends the study, with the end of its log
    assert "what went wrong" in process.stderr
    assert f"{tmp_path}/out/on_policy-s0 failed, exit code 3" in process.stderr
    assert len(training(study()[1])) == 4
    process, commands = study()
    assert training(commands) == []
    assert process.stdout.count("done before") == 4
    assert "report" in commands[-1]
    assert len(training(study(STEPS="20")[1])) == 4  # longer runs of the same study


def test_any_preset_is_a_variant_and_a_prefix_runs_each(study):
    process, commands = study(VARIANTS="exgrpo rho_0.25", SEEDS="1", RUNNER="env PREFIX=locked:")
    assert process.returncode == 0, process.stderr
    presets = ("method=exgrpo", "ablation=rho_0.25")
    assert [preset in run.split() for run, preset in zip(training(commands), presets, strict=True)] == [True, True]
    assert [command.startswith("locked:") for command in commands if "make_toy" not in command] == [True, True, False]


def test_folders_may_have_any_name(study, tmp_path):
    out = tmp_path / "lr=1e-4, {b}"
    process, commands = study(VARIANTS="on_policy", SEEDS="0", OUT=str(out))
    assert process.returncode == 0, process.stderr
    assert (out / "on_policy-s0/metrics.jsonl").exists()
    overrides = re.findall(r"[\w.]+='[^']*'", training(commands)[0])
    config = compose_run(["hardware=cpu", *overrides])
    assert config.trainer.default_local_dir == f"{out}/on_policy-s0"
    assert config.data.train_files == f"{out}/data/train.parquet"


def test_another_script_makes_the_runs_and_its_task_has_a_folder_of_its_own(study, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text('exec "$PYTHON" -m recipe.exgrpo.main trainer.default_local_dir="$RUN" "$TASK:$DATA" "$@"\n')
    out = ROOT / "outputs/study_stack_poems"
    process, commands = study(VARIANTS="on_policy", SEEDS="0", SCRIPT=str(script), TASK="poems", OUT="")
    shutil.rmtree(out)
    assert process.returncode == 0, process.stderr
    assert f"poems:{out.relative_to(ROOT)}/data method=on_policy data.seed=0 " in commands[0]
    assert commands[-1].endswith(f"--out {out.relative_to(ROOT)}")


def test_an_unknown_variant_is_refused_before_anything_runs(study):
    process, commands = study(VARIANTS="on_policy nothing")
    assert (process.returncode, commands) == (2, [])
    assert "no variant 'nothing'" in process.stderr


def test_help_is_the_comment_at_the_top(study):
    process, commands = study("--help")
    assert (process.returncode, commands) == (0, [])
    assert process.stdout.startswith("The study on the real stack")
