"""The grading pool: deadlines, limits, kills, rebuilds, threads, asyncio and exit."""

import asyncio
import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verl_ext.rewards import Grader, GradingError, GradingTimeout, compute_score, pool
from verl_ext.rewards.equivalence import grade_answer

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def grader():
    with Grader(workers=1, deadline_s=2.0, memory_mb=256) as grader:
        yield grader


def grades_right(grader: Grader) -> bool:
    return any(grader.run(grade_answer, "84/2", "42") == (True, "84/2") for _ in range(3))


def test_a_long_c_call_is_killed_at_its_deadline(grader):
    assert grades_right(grader)
    start = time.monotonic()
    with pytest.raises(GradingTimeout, match="killed after 2 s of CPU time"):
        grader.run(math.factorial, 10**9)
    assert time.monotonic() - start < grader.wall_s
    assert grades_right(grader)


def test_a_worker_that_gets_no_cpu_time_keeps_its_deadline():
    with Grader(workers=1, deadline_s=0.5) as grader:
        assert grader.run(time.sleep, 1.5) is None
        with pytest.raises(GradingTimeout, match=r"killed after 0.5 s of CPU time"):
            grader.run(math.factorial, 10**9)


def test_a_call_that_waits_is_killed_by_the_clock(monkeypatch):
    monkeypatch.setattr(pool, "WALL_FACTOR", 2)
    with Grader(workers=1, deadline_s=0.5) as grader:
        with pytest.raises(GradingTimeout, match="killed after 1 s by the clock"):
            grader.run(time.sleep, 60)
        assert grades_right(grader)


def test_cpu_time_is_counted_anew_for_each_call():
    with Grader(workers=1, deadline_s=2.0) as grader:
        first = grader.run(os.getpid)
        start = grader.run(time.process_time)
        while grader.run(time.process_time) - start < 3.0:
            grader.run(sum, range(10_000_000))
        assert grader.run(os.getpid) == first


def test_memory_is_limited(grader):
    with pytest.raises(GradingError, match="MemoryError"):
        grader.run(bytearray, 1 << 30)
    assert len(grader.run(bytes, 1 << 20)) == 1 << 20
    assert grades_right(grader)


def test_an_exception_comes_back_as_its_name_only(grader):
    with pytest.raises(GradingError, match=r"^ZeroDivisionError$"):
        grader.run(divmod, 1, 0)
    assert grades_right(grader)


@pytest.mark.parametrize("_", range(3))
def test_a_crash_is_an_error_and_the_next_sample_is_graded(grader, _):
    with pytest.raises(GradingError, match=r"exit code -6|broke"):
        grader.run(os.abort)
    assert grades_right(grader)


@pytest.mark.parametrize(
    ("function", "args"),
    [(os.system, ("true",)), (subprocess.check_output, (["true"],)), (os.fork, ()), (os.kill, (1, 0))],
)
def test_a_worker_starts_nothing_and_signals_nobody(grader, function, args):
    with pytest.raises(GradingError, match="PermissionError"):
        grader.run(function, *args)


@pytest.mark.parametrize("function", [open, io.open])
def test_a_worker_writes_no_file(grader, function, tmp_path):
    with pytest.raises(GradingError, match="PermissionError"):
        grader.run(function, str(tmp_path / "x"), "w")
    assert list(tmp_path.iterdir()) == []


def test_a_pool_whose_workers_are_shot_is_rebuilt(grader):
    for _ in range(5):
        os.kill(grader.run(os.getpid), signal.SIGKILL)
        assert grades_right(grader)


def test_pending_samples_survive_shot_workers():
    with Grader(workers=2, deadline_s=2.0) as grader, ThreadPoolExecutor(16) as threads:
        pending = [threads.submit(grader.run, grade_answer, f"{i}/2 " + " " * 2000, "21") for i in range(300)]
        for _ in range(3):
            time.sleep(0.05)
            for worker in list(grader._pool._pool_manager.worker_manager.workers):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        right = lost = 0
        for future in pending:
            try:
                right += future.result(timeout=60)[0]
            except (GradingError, GradingTimeout):
                lost += 1
        assert lost <= 12  # what the shot workers held, and no more than they could hold
        assert right == 1 or lost > 0
        assert grades_right(grader)


def test_a_lock_that_a_dead_worker_holds_stalls_nobody(grader, monkeypatch):
    monkeypatch.setattr(pool, "STALL_S", 1.0)
    monkeypatch.setattr(pool, "WALL_FACTOR", 2)
    assert grades_right(grader)
    first = grader._pool
    assert first._pool_manager.worker_manager.workers_channel.mutex.acquire()  # what a shot worker leaves behind
    assert grades_right(grader)
    assert grader._pool is not first


def test_close_and_use_again(grader):
    assert grades_right(grader)
    first = grader.run(os.getpid)
    grader.close()
    assert not Path(f"/proc/{first}").exists()
    assert grades_right(grader)


def test_workers_hold_neither_torch_nor_the_main_module(grader):
    assert grader.run(eval, "'torch' in __import__('sys').modules") is False
    assert grader.run(eval, "'pytest' in __import__('sys').modules") is False
    assert grader.run(eval, "'math_verify' in __import__('sys').modules") is True


def test_threads_and_asyncio_share_one_pool():
    async def grade_all() -> list[dict]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(None, compute_score, "math500", f"\\boxed{{x+{i}}}", "7+x") for i in range(64)]
        return await asyncio.gather(*calls)

    scores = asyncio.run(grade_all())
    assert [i for i, score in enumerate(scores) if score["score"]] == [7]


SCRIPT = """
import multiprocessing, sys, threading, time
import verl_ext.rewards as rewards
deadline_s = float(sys.argv[1])
if __name__ == "__mp_main__":
    sys.exit("a worker has imported the main module")
print(rewards.compute_score("math500", "\\\\boxed{x+x}", "2x", deadline_s=deadline_s, workers=2)["score"])
stalled = threading.Thread(
    target=rewards.compute_score, args=("math500", "\\\\boxed{9^{9^{9^{9}}}}", "42"),
    kwargs=dict(deadline_s=deadline_s, workers=2), daemon=True,
)
stalled.start()
time.sleep(0.3)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def start_script(tmp_path, deadline_s: float, ending: str = "") -> subprocess.Popen:
    script = tmp_path / "main_module.py"
    script.write_text(textwrap.dedent(SCRIPT) + ending)
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        [sys.executable, str(script), str(deadline_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_until_gone(pids: list[str], seconds: float) -> list[str]:
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_exit_leaves_nothing_behind_and_prints_nothing(tmp_path):
    process = start_script(tmp_path, 30.0)
    output, errors = process.communicate(timeout=60)
    score, workers = output.splitlines()
    assert (process.returncode, errors, score) == (0, "", "1.0"), errors
    assert len(workers.split()) == 2
    assert wait_until_gone(workers.split(), 5.0) == []


def test_workers_end_when_the_parent_is_killed_even_inside_a_long_call(tmp_path):
    process = start_script(tmp_path, 1.0, "time.sleep(60)")
    process.stdout.readline()
    workers = process.stdout.readline().split()
    process.kill()
    process.communicate()
    assert len(workers) == 2
    assert wait_until_gone(workers, 60.0) == []  # the stalled one by its CPU limit
