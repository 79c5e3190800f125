"""`--dry-run` of the scripts that train on CPU: the overrides, one per line, and nothing made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.exgrpo.cli.main import main
from recipe.exgrpo.presets.compose import ROOT, compose, experiment_scripts, resolve_target, run_scripts

CPU_SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("run_*.sh"))


def dry_run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The script with an interpreter that fails: a dry run must make nothing."""
    env = {name: value for name, value in os.environ.items() if name not in ("RUN", "MODEL", "DATA", "STEPS", "TASK")}
    env |= {"PYTHON": "/bin/false"} | environment
    command = ["bash", str(ROOT / "scripts" / script), *arguments, "--dry-run"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_there_are_four():
    assert CPU_SCRIPTS == [
        "run_demo.sh",
        "run_exgrpo_smollm2_cpu.sh",
        "run_exgrpo_tool_cpu.sh",
        "run_exgrpo_toy_cpu.sh",
    ]


@pytest.mark.parametrize("task", ["gsm8k", "sums"])
@pytest.mark.parametrize("script", CPU_SCRIPTS)
def test_a_dry_run_prints_a_configuration_and_makes_nothing(script, task, tmp_path):
    python = {"PYTHON": sys.executable} if script == "run_demo.sh" else {}
    switches = {"TASK": task, "DATA": str(tmp_path / "data"), "STEPS": "7"} | python
    arguments = ["--out", str(tmp_path / "run"), "--steps", "7"] if script == "run_demo.sh" else []
    done = dry_run(script, *arguments, "exgrpo.rho=0.25", RUN=str(tmp_path / "run"), **switches)
    assert done.returncode == 0, done.stderr
    config = compose(done.stdout.splitlines())
    assert (config.trainer.default_local_dir, config.trainer.total_training_steps) == (str(tmp_path / "run"), 7)
    assert (config.exgrpo.rho, config.trainer.device) == (0.25, "cpu")
    assert Path(config.data.train_files).parent == tmp_path / "data"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", CPU_SCRIPTS[1:])
@pytest.mark.parametrize("name", ["a b", "it's, {a} #1=x", "[a] b", "null", "2024"])
def test_folders_may_have_any_name(script, name):
    run, data = f"{name}/{name}", f"{name} data"
    config = compose(dry_run(script, RUN=run, DATA=data).stdout.splitlines())
    assert (config.trainer.default_local_dir, config.trainer.experiment_name) == (run, name)
    assert config.data.val_files.startswith(f"{data}/")


def test_an_unknown_task_and_an_unknown_option_are_refused():
    assert dry_run("run_exgrpo_smollm2_cpu.sh", TASK="poems").returncode == 2
    done = dry_run("run_exgrpo_toy_cpu.sh", "--frobnicate")
    assert (done.returncode, "unknown option --frobnicate" in done.stderr) == (2, True)


def test_a_study_prints_the_overrides_of_each_run_and_makes_nothing(tmp_path):
    done = dry_run(
        "study_stack.sh", "exgrpo.rho=0.25", OUT=str(tmp_path / "out"), VARIANTS="on_policy refill", SEEDS="3"
    )
    assert done.returncode == 0, done.stderr
    first, second = (part.splitlines() for part in done.stdout.split("[2/2] "))
    assert (first[0], second[0]) == ("[1/2] on_policy, seed 3", "refill, seed 3")
    for lines, policy in ((first, "on_policy"), (second, "refill")):
        config = compose(lines[1:])
        assert (config.exgrpo.policy, config.exgrpo.seed, config.exgrpo.rho) == (policy, 3, 0.25)
        assert config.trainer.default_local_dir == f"{tmp_path}/out/{policy}-s3"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", CPU_SCRIPTS[1:])
def test_check_and_config_take_the_script(script, capsys, monkeypatch):
    """They are runs, but no experiment of the paper."""
    assert ROOT / "scripts" / script in set(run_scripts()) - set(experiment_scripts())
    monkeypatch.setenv("RUN", "outputs/nowhere")
    assert compose(resolve_target([f"scripts/{script}"])).trainer.default_local_dir == "outputs/nowhere"
    assert main(["config", f"scripts/{script}"]) == 0
    assert "outputs/nowhere" not in capsys.readouterr().err
