"""scripts/ray_cluster.sh, with `ray` and `python` replaced by recorders: what it would start, and when it gives up."""

import os
import subprocess

import pytest

from recipe.exgrpo.composition import ROOT


@pytest.fixture
def cluster(tmp_path):
    """cluster(*arguments, nodes=[counts that python reports in turn], **env) -> (process, commands that ray was given)."""
    log, counts = tmp_path / "log", tmp_path / "counts"
    ray, python = tmp_path / "ray", tmp_path / "python"
    ray.write_text(f'#!/bin/bash\necho "$@" >> {log}\n')
    # Takes the next line of `counts`; fails, as the real one does while there is no head, when the line is "none".
    python.write_text(f'#!/bin/bash\nn=$(head -1 {counts}); sed -i 1d {counts}; [ "$n" != none ] && echo "$n"\n')
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for name in ("ray", "python", "sleep"):
        (tmp_path / name).chmod(0o755)

    def run(*arguments, nodes=(), **env):
        counts.write_text("".join(f"{count}\n" for count in nodes))
        environment = {"PATH": os.environ["PATH"], "BIN": str(tmp_path), **env}
        command = ["bash", "scripts/ray_cluster.sh", *arguments]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
        return process, log.read_text().splitlines() if log.exists() else []

    return run


def test_head_and_workers_use_the_same_port(cluster):
    assert cluster("head", PORT="7000")[0].returncode == 0
    process, commands = cluster("worker", "10.0.0.1", PORT="7000", GPUS="4")
    assert process.returncode == 0
    assert "--head --port=7000" in commands[0]
    assert commands[1] == "start --address=10.0.0.1:7000 --disable-usage-stats --num-gpus=4"


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
