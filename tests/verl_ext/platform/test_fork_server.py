"""The fork server: a worker gets its own arguments, environment and streams, and the modules that are there already."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verl_ext.platform.fork_server import CLIENT, PRELOAD

pytestmark = pytest.mark.verl

DRIVER = """
import sys
from verl_ext.platform.fork_server import start
print(start(preload=("colorsys", "no_such_module", "numpy")), flush=True)
sys.stdin.read()
"""
WORKER = """
import json, multiprocessing, os, random, signal, sys
import numpy
print(json.dumps({
    "name": __name__,
    "argv": sys.argv,
    "env": os.environ.get("FROM_RAY"),
    "cwd": os.getcwd(),
    "own_group": os.getpgrp() == os.getpid(),
    "preloaded": "colorsys" in sys.modules,
    "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)]
    == [signal.default_int_handler, signal.SIG_DFL],
    "draw": [random.random(), numpy.random.rand()],
    "may_have_children": not multiprocessing.current_process().daemon,
}))
"""


@pytest.fixture
def driver():
    """(process, command): a driver with a server that ends when its input does."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().split()
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def worker(tmp_path):
    """worker(command) -> what a script says of the process it runs in, started as Ray would."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def run(command: list[str]) -> dict:
        env = {"FROM_RAY": "2", "PATH": "/usr/bin:/bin"}
        arguments = [*command, str(script), "--port", "1"]
        out = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True)
        return json.loads(out.stdout)  # the pipe closes when the worker, not only the client, has ended

    return run


def test_a_forked_worker_is_as_its_own_interpreter_would_be(driver, worker, tmp_path):
    found = worker(driver[1])
    assert found["name"] == "__main__"
    assert found["argv"] == [str(tmp_path / "worker.py"), "--port", "1"]
    assert found["env"] == "2"
    assert found["cwd"] == str(tmp_path)
    assert found["preloaded"]
    assert found["signals"]
    assert found["own_group"], "a terminal's Ctrl-C is for the driver"
    assert found["may_have_children"]


def test_workers_draw_different_random_numbers(driver, worker):
    first, second = worker(driver[1])["draw"], worker(driver[1])["draw"]
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_without_a_server_the_worker_starts_by_itself(worker, tmp_path):
    found = worker([sys.executable, "-I", "-S", str(CLIENT), str(tmp_path / "nobody")])
    assert found["env"] == "2"
    assert not found["preloaded"]


def test_ray_must_come_later():
    code = "import ray; from verl_ext.platform.fork_server import start; start()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "before `import ray`" in ended.stderr


def test_what_is_loaded_by_default_is_there_and_leaves_ray_out():
    code = (
        f"import sys, importlib; [importlib.import_module(name) for name in {PRELOAD}]; sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_the_server_ends_with_the_driver(driver, how):
    process, command = driver
    folder = Path(command[-1]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    process.kill() if how == "is killed" else process.stdin.close()
    process.wait(30)
    deadline = time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
