"""Runs functions on untrusted text in worker processes that are killed at their deadline.

A kept library does the work (pebble); this module chooses how workers start and what they may do. Workers are forked
from a fork server that holds Math-Verify and nothing else: the trainer's threads and torch are never forked, a worker
starts in milliseconds, and a killed one is replaced at once.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pebble import ProcessExpired, ProcessPool

PRELOAD = "verl_ext.rewards.preload"
TASKS_PER_WORKER = 2000  # then the worker is replaced, which bounds what SymPy's caches can hold
ATTEMPTS = 3  # a pool that broke under another sample is rebuilt and the sample tried again
WALL_FACTOR = (
    10  # a call that waits, or gets little of a busy machine, may take so many times its deadline by the clock
)
STALL_S = (
    5.0  # a pool in which no call comes back for the limit by the clock + STALL_S: a worker was shot holding its lock
)
_DENIED_EVENTS = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("socket.connect", "socket.bind", "socket.sendto", "os.remove", "os.rename", "os.kill", "ctypes.dlopen"),
)


class GradingTimeout(Exception):
    """The function did not return before its deadline; its worker was killed."""


class GradingError(Exception):
    """The function raised, ran out of memory or CPU time, or crashed its worker."""


class Grader:
    """A pool of grading workers, started at the first call and rebuilt whenever it dies. Thread-safe.

    Args:
        workers: worker processes.
        deadline_s: seconds of CPU time that a call may use once a worker has taken it; then the worker is killed, as it is
            after WALL_FACTOR times as long by the clock.
        memory_mb: memory a worker may take beyond what it holds at its start, in MiB.
    """

    def __init__(self, workers: int = 1, deadline_s: float = 5.0, memory_mb: int = 1024):
        self.workers, self.deadline_s, self.memory_mb = workers, deadline_s, memory_mb
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._progress = time.monotonic()  # when any call last came back

    @property
    def wall_s(self) -> float:
        """Seconds by the clock after which a call is killed whatever it has used."""
        return WALL_FACTOR * self.deadline_s

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)` in a worker. The function is sent by name, its arguments and result are pickled.

        Raises GradingTimeout after the deadline, GradingError for anything else that went wrong.
        """
        for _ in range(ATTEMPTS):
            pool = self._running_pool()
            try:
                status, value = self._call(pool, function, args)
            except TimeoutError:
                raise GradingTimeout(f"killed after {self.wall_s:g} s by the clock") from None
            except ProcessExpired as expired:
                if expired.exitcode == -signal.SIGPROF:
                    raise GradingTimeout(f"killed after {self.deadline_s:g} s of CPU time") from None
                raise GradingError(f"the grading worker died with exit code {expired.exitcode}") from None
            except (BrokenProcessPool, CancelledError, RuntimeError):  # RuntimeError: pebble, on a pool that has ended
                self._drop(pool)
                continue
            if status == "error":
                raise GradingError(value)
            return value
        raise GradingError(f"the grading pool broke {ATTEMPTS} times")

    def close(self) -> None:
        """Stop the workers. A later call starts new ones."""
        stopping = self._drop(self._pool)
        if stopping is not None:
            stopping.join(timeout=STALL_S)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call(self, pool: ProcessPool, function: Callable, args: tuple) -> tuple[str, Any]:
        start = time.monotonic()
        future = pool.schedule(_in_worker, args=(function, args, self.deadline_s), timeout=self.wall_s)
        while not wait([future], timeout=1.0).done:
            idle = time.monotonic() - max(start, self._progress)
            if not pool.active or idle > self.wall_s + STALL_S:
                raise BrokenProcessPool("the grading pool stopped")
        self._progress = time.monotonic()
        return future.result()

    def _running_pool(self) -> ProcessPool:
        with self._lock:
            if self._pool is None:
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload([PRELOAD])
                self._pool = ProcessPool(
                    max_workers=self.workers,
                    max_tasks=TASKS_PER_WORKER,
                    initializer=_confine,
                    initargs=(self.memory_mb,),
                    context=context,
                )
            return self._pool

    def _drop(self, pool: ProcessPool | None) -> threading.Thread | None:
        """Give up `pool` and stop it in a thread of its own: a dead pool may take its time."""
        with self._lock:
            if pool is None or pool is not self._pool:
                return None  # another thread has replaced it already
            self._pool = None
            self._progress = time.monotonic()
        stopping = threading.Thread(target=_stop, args=(pool,), daemon=True)
        stopping.start()
        return stopping


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _in_worker(function: Callable, args: tuple, deadline_s: float) -> tuple[str, Any]:
    """Any failure comes back as text: no exception object built from untrusted text is unpickled by the trainer."""
    signal.setitimer(
        signal.ITIMER_PROF, deadline_s
    )  # CPU time; the signal ends the process, in the middle of a C call too
    try:
        return "ok", function(*args)
    except Exception as error:  # noqa: BLE001 - untrusted text may raise anything, MemoryError and RecursionError included
        return "error", type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _confine(memory_mb: int) -> None:
    """Limits of a worker, set once at its start."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the deadline, see _in_worker
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler waits for a bytecode: a long C call never ends
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    for limit, value in (
        (resource.RLIMIT_AS, mapped + (memory_mb << 20)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_deny)


def _deny(event: str, args: tuple) -> None:
    """Second line of defence: nothing a grader does needs a process, a socket or a writable file."""
    if event in _DENIED_EVENTS or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        raise PermissionError(f"{event} is not allowed in a grading worker")
