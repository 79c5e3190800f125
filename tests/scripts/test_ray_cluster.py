"""scripts/ray_cluster.sh and the Slurm example, with recorders for `ray`, `python` and `srun`: what they would start."""

import os
import signal
import subprocess
import time

import pytest

from recipe.exgrpo.presets.compose import ROOT


@pytest.fixture
def cluster(tmp_path):
    """cluster(*arguments, nodes=[counts that python reports in turn], **env) -> (process, commands that ray was given)."""
    log, counts = tmp_path / "log", tmp_path / "counts"
    ray, python = tmp_path / "ray", tmp_path / "python"
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    # As the real one: makes the token of this home, where there is none.
    ray.write_text(
        f'#!/bin/bash\necho "$@" >> {log}\n'
        f'case "$*" in *--generate*) [ -s {token} ] || echo made > {token} ;; '
        f'start*) echo "auth $RAY_AUTH_MODE" >> {log} ;; esac\n'
    )
    # Takes the next line of `counts`; fails, as the real one does while there is no head, when the line is "none".
    python.write_text(f'#!/bin/bash\nn=$(head -1 {counts}); sed -i 1d {counts}; [ "$n" != none ] && echo "$n"\n')
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for name in ("ray", "python", "sleep"):
        (tmp_path / name).chmod(0o755)

    def run(*arguments, nodes=(), **env):
        counts.write_text("".join(f"{count}\n" for count in nodes))
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": str(python), **env}
        command = ["bash", "scripts/ray_cluster.sh", *arguments]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
        return process, log.read_text().splitlines() if log.exists() else []

    return run


def test_head_and_workers_use_the_same_port_and_ask_for_the_token(cluster):
    assert cluster("head", PORT="7000")[0].returncode == 0
    process, commands = cluster("worker", "10.0.0.1", PORT="7000", GPUS="4", CPUS="30", NODE_IP="10.0.0.2")
    assert process.returncode == 0
    assert commands[0] == "get-auth-token --generate"
    assert "--head --port=7000" in commands[1]
    given = "--num-gpus=4 --num-cpus=30 --node-ip-address=10.0.0.2"
    assert commands[2:] == ["auth token", f"start --address=10.0.0.1:7000 --disable-usage-stats {given}", "auth token"]


def test_a_worker_without_the_token_is_refused_before_ray_is(cluster):
    """Ray's own words are forty lines of traceback that end in InvalidAuthToken."""
    process, commands = cluster("worker", "10.0.0.1")
    assert (process.returncode, commands) == (2, [])
    assert "copy the head's ~/.ray/auth_token here, or set RAY_AUTH_TOKEN" in process.stderr
    assert cluster("worker", "10.0.0.1", RAY_AUTH_TOKEN="abc")[1][-1] == "auth token"


def test_an_open_cluster_needs_no_token(cluster):
    _, commands = cluster("head", RAY_AUTH_MODE="disabled")
    assert "auth disabled" in commands
    assert not any("get-auth-token" in command for command in commands)
    assert cluster("worker", "10.0.0.1", RAY_AUTH_MODE="disabled")[1][-1] == "auth disabled"


@pytest.mark.parametrize(("given", "device"), [({}, "cuda"), ({"HARDWARE": "cpu"}, "cpu"), ({"TINY": "1"}, "cpu")])
def test_the_environment_is_chosen_as_for_a_run_and_said(cluster, given, device):
    """After `make demo` there is a .venv, for CPU, on a machine with GPUs too."""
    assert cluster("head", **given)[0].stderr.startswith(f"environment for {device}: ")


@pytest.mark.parametrize(("address", "mode"), [("10.0.0.1:6379", "token"), ("", "unset")])
def test_a_run_shows_its_token_to_a_cluster(tmp_path, address, mode):
    """By itself Ray does so for the address `auto` alone."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "mode ${RAY_AUTH_MODE:-unset}"\n')
    python.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": str(python), "RAY_AUTH_TOKEN": "abc"}
    process = subprocess.run(
        ["bash", "scripts/luffy_exgrpo.sh"],
        cwd=ROOT, env=env | {"RAY_ADDRESS": address}, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert process.stdout == f"mode {mode}\n"


def test_wait_ends_when_all_have_joined(cluster):
    assert cluster("wait", "3", nodes=["none", 1, 2, 3])[0].returncode == 0


def test_wait_gives_up_after_its_time(cluster):
    process, _ = cluster("wait", "3", nodes=[1] * 9, WAIT_S="0")
    assert process.returncode != 0
    assert "1 of 3 machines" in process.stderr


@pytest.mark.parametrize("arguments", [("worker",), ("wait",), ("start",)])
def test_wrong_use_is_refused(cluster, arguments):
    process, commands = cluster(*arguments)
    assert process.returncode != 0
    assert process.stderr
    assert commands == []


# ---- Slurm


def test_the_slurm_example_starts_head_workers_and_the_script(tmp_path):
    log = tmp_path / "log"
    commands = {
        "scontrol": "echo node1; echo node2; echo node3",
        "srun": f'echo "NNODES=$NNODES GPUS=$GPUS RAY_ADDRESS=$RAY_ADDRESS $*" >> {log}; '
        'case "$*" in *hostname*) echo "10.0.0.1 172.17.0.1" ;; esac',
        "sleep": ":",
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "96"}
    job |= {"SLURM_GPUS_ON_NODE": "4", "SCRIPT": "scripts/luffy_exgrpo.sh", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "scripts/slurm_example.sbatch", "exgrpo.rho=0.3"]
    process = subprocess.run(command, cwd=ROOT, env=job, capture_output=True, text=True, timeout=30)
    assert process.returncode == 0, process.stderr
    lines = log.read_text().splitlines()  # those of head and workers at any place: they are started in the background
    assert any("--nodelist=node1 bash -c bash scripts/ray_cluster.sh head" in line for line in lines)
    for node in ("node2", "node3"):
        worker = f"--nodelist={node} bash -c until bash scripts/ray_cluster.sh worker 10.0.0.1;"
        assert any(worker in line for line in lines)
    [wait] = [i for i, line in enumerate(lines) if line.endswith("--nodelist=node1 bash scripts/ray_cluster.sh wait 3")]
    [run] = [i for i, line in enumerate(lines) if line.endswith("bash scripts/luffy_exgrpo.sh exgrpo.rho=0.3")]
    assert wait < run
    assert lines[run].startswith("NNODES=3 GPUS=4 RAY_ADDRESS=10.0.0.1:6379 ")
    assert "--cpus-per-task=96 --nodelist=node1" in lines[run]


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False), (0, False)])
def test_the_slurm_example_hands_the_signal_on_and_requeues_a_run_that_stopped(tmp_path, code, requeued):
    """The job's signal reaches the run alone; 75 is the exit code of a run that saved and can go on."""
    log, began = tmp_path / "log", tmp_path / "began"
    run = f"trap 'sleep 0.2; exit {code}' USR1; touch {began}; for _ in $(seq 600); do /bin/sleep 0.1; done; exit 9"
    commands = {
        "scontrol": f'[ "$1" = show ] && echo node1 || echo "scontrol $*" >> {log}',
        "srun": f'case "$*" in *hostname*) echo 10.0.0.1 ;; *luffy*) {run} ;; esac',
        "sleep": ":",
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "17"}
    job |= {"SCRIPT": "scripts/luffy_exgrpo.sh", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", "scripts/slurm_example.sbatch"], cwd=ROOT, env=job)
    deadline = time.monotonic() + 30
    while not began.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == code
    assert (log.exists() and log.read_text() == "scontrol requeue 17\n") is requeued


def test_the_slurm_log_needs_no_folder():
    """Slurm does not make it, and without it the job's output is lost; outputs/ is not part of a fresh checkout."""
    [output] = [
        line for line in (ROOT / "scripts/slurm_example.sbatch").read_text().splitlines() if "--output=" in line
    ]
    assert "/" not in output
