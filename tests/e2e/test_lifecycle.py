"""A run's life under fault, on the real stack: a second start, a signal, a resume, an engine that dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from recipe.exgrpo.runs.folder import checkpoints, tracked_step
from recipe.exgrpo.runs.lock import NAME
from recipe.exgrpo.runs.summary import last_step

pytestmark = [pytest.mark.stack, pytest.mark.long]
ROOT = Path(__file__).resolve().parents[2]
BASE = (
    *("data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "exgrpo.start_threshold=null"),
    *("trainer.test_freq=-1", "trainer.val_before_train=false", "trainer.max_actor_ckpt_to_keep=1"),
)


@dataclass
class Started:
    """A run of the toy task that goes on until something happens to it."""

    folder: Path
    log: Path
    process: subprocess.Popen

    def wait_for(self, happened: Callable[[], object], limit_s: float = 480) -> None:
        deadline = time.monotonic() + limit_s
        while not happened():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.005)

    @property
    def engines(self) -> list[psutil.Process]:
        family = psutil.Process(self.process.pid).children(recursive=True)
        found = [member for member in family if "EngineCor" in member.name() + " ".join(member.cmdline())]
        assert found, "no vLLM engine found among the run's processes"
        return found

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


def command(folder: Path, *overrides: str) -> dict:
    """Arguments for subprocess: the script that a user would call."""
    env = os.environ | {"RUN": str(folder), "STEPS": "1000", "PYTHON": sys.executable}
    return {"args": ["bash", "scripts/run_exgrpo_toy_cpu.sh", *BASE, *overrides], "cwd": ROOT, "env": env}


def start(folder: Path, *overrides: str) -> Started:
    log = folder.with_suffix(f".{time.monotonic_ns()}.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            **command(folder, *overrides), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Started(folder, log, process)


def left_in_shared_memory(since: float) -> list[Path]:
    """Segments made since then that no process maps."""
    found = [path for path in Path("/dev/shm").glob("psm_*") if path.stat().st_ctime >= since]
    mapped = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # another user's, or gone
            mapped.append(maps.read_text())
    return [path for path in found if str(path) not in "".join(mapped)]


@dataclass
class Stopped:
    """A run that was asked to stop after its second step, while another start was tried."""

    run: Started
    second: subprocess.CompletedProcess
    before: dict[str, bytes]
    after: dict[str, bytes]
    began: float


def settled(folder: Path) -> dict[str, bytes]:
    """What a second start must leave alone and the first does not write while it trains."""
    grow = {"metrics.jsonl", "history.jsonl"}  # a line each step
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in grow)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Stopped:
    folder, began = tmp_path_factory.mktemp("life") / "run", time.time()
    run = start(folder, "trainer.save_freq=500")
    try:
        run.wait_for(lambda: last_step(folder) >= 2)
        before = settled(folder)
        second = subprocess.run(**command(folder), capture_output=True, text=True, timeout=240)
        after = settled(folder)
        run.process.send_signal(signal.SIGTERM)
        run.process.wait(timeout=240)
    finally:
        run.process.kill()
    return Stopped(run, second, before, after, began)


def test_a_second_start_is_refused_and_touches_nothing(stopped):
    assert stopped.second.returncode == 2
    said = stopped.second.stderr.splitlines()[-1]
    assert f"in use by process {stopped.run.process.pid} on " in said
    assert stopped.before == stopped.after
    assert set(stopped.before) >= {NAME, "record/start-000/config.yaml"}


def test_sigterm_finishes_the_step_saves_and_exits_with_75(stopped):
    assert stopped.run.process.returncode == 75, stopped.run.lines[-20:]
    step = last_step(stopped.run.folder)
    assert 2 <= step < 500
    assert tracked_step(stopped.run.folder) == step
    (saved,) = checkpoints(stopped.run.folder)
    assert (saved.step, saved.problems) == (step, ())
    said = stopped.run.lines[-1]
    assert said.startswith(f"stopped after step {step} of 1000: {stopped.run.folder}")
    assert "the same command resumes" in said


def test_the_log_is_short_and_nothing_stays_in_shared_memory(stopped):
    assert len(stopped.run.lines) < 300, "start-up says too much"
    assert not any("Final validation" in line for line in stopped.run.lines), "verl's last word, None"
    assert not any("'actor_rollout_ref'" in line for line in stopped.run.lines), "verl's dump of the configuration"
    assert left_in_shared_memory(stopped.began) == []
    assert (stopped.run.folder / NAME).read_text() == ""


@pytest.mark.parametrize(
    ("number", "send"),
    [
        pytest.param(signal.SIGINT, os.killpg, id="Ctrl-C, which a terminal sends to all processes"),
        pytest.param(signal.SIGUSR1, os.kill, id="SIGUSR1", marks=pytest.mark.scripts),
    ],
)
def test_other_signals_do_the_same(stopped, number, send):
    """On the run that the same command resumes."""
    reached = last_step(stopped.run.folder)
    run = start(stopped.run.folder, "trainer.save_freq=500")
    try:
        run.wait_for(lambda: last_step(run.folder) > reached)
        send(run.process.pid, number)
        run.process.wait(timeout=240)
    finally:
        run.process.kill()
    assert run.process.returncode == 75, run.lines[-20:]
    assert any(f"{number.name}: the run ends after this step, saved" in line for line in run.lines)
    assert run.lines[-1].startswith(f"stopped after step {last_step(run.folder)} of 1000: {run.folder}")
    assert tracked_step(run.folder) == last_step(run.folder) > reached
    assert [found.problems for found in checkpoints(run.folder)] == [()]


def test_an_engine_killed_in_a_rollout_ends_the_run_with_its_cause_last(stopped):
    """The same command resumes first; what was saved is then still there."""
    reached = last_step(stopped.run.folder)
    run = start(stopped.run.folder, "trainer.save_freq=500")
    try:
        run.wait_for(lambda: last_step(run.folder) > reached)
        time.sleep(0.5)
        killed = time.monotonic()
        for engine in run.engines:
            engine.kill()
        run.process.wait(timeout=120)
    finally:
        run.process.kill()
    assert time.monotonic() - killed < 60  # 15 s on a quiet machine
    assert run.process.returncode == 1
    assert "EngineDeadError" in run.lines[-1]
    assert f"global_step_{reached}; the same command resumes from it" in run.lines[-1]
    assert len(run.lines) < 3000, "tracebacks of every request"
    assert checkpoints(run.folder)[0].step == tracked_step(run.folder) == reached


@pytest.mark.scripts
def test_an_engine_that_dies_in_a_weight_sync_ends_the_run_at_once(tmp_path):
    """Frozen before the sync, which then waits for it, and killed: verl's trainer would wait for ever."""
    run = start(tmp_path / "run", "trainer.save_freq=1")
    try:
        run.wait_for(lambda: (run.folder / "global_step_1").exists())
        engines = run.engines
        run.wait_for(lambda: (run.folder / "global_step_2/actor").exists())  # the sync is next
        for engine in engines:
            engine.suspend()
        time.sleep(4)
        killed = time.monotonic()
        for engine in engines:
            engine.kill()
        run.process.wait(timeout=120)
    finally:
        run.process.kill()
    assert time.monotonic() - killed < 60  # 13 s on a busy machine of two cores
    assert run.process.returncode == 1
    assert any("weight sync: vLLM's engine at" in line for line in run.lines)
    assert "EngineDeadError" in run.lines[-1]
    assert tracked_step(run.folder) == 2
