"""End a run that has stopped making progress, instead of waiting for ever, or whose cause of death is known already.

A vLLM worker that dies while it loads weights leaves verl's trainer in `ray.get` without a time limit. The watchdog
interrupts the main thread as Ctrl-C would, which `ray.get`, event loops, `time.sleep` and locks all let through, and
turns that into an error with a name.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

# Ignored by default and used by nothing here, so that a signal which arrives just after a section ended does no harm.
SIGNAL = signal.SIGURG
EXIT_CODE = 86
LOOK_S = 2.0  # between two looks for a problem


class StalledError(RuntimeError):
    """A part of the run made no progress within its time limit."""


class Watchdog:
    """Time limits for sections of the main thread.

    Args:
        timeout_s: seconds a guarded section may take; None or 0 guards nothing.
        grace_s: seconds the section gets to unwind after it was interrupted. If it is still there, because it swallows
            the interrupt or hangs where no Python code runs, the process ends with exit code 86.

    Raises:
        ValueError: a negative limit.
    """

    def __init__(self, timeout_s: float | None, grace_s: float = 60.0):
        if (timeout_s or 0) < 0 or grace_s < 0:
            raise ValueError(f"a watchdog needs limits of 0 s or more, not timeout_s={timeout_s}, grace_s={grace_s}.")
        self.timeout_s = timeout_s or None
        self.grace_s = grace_s

    @contextmanager
    def guard(self, section: str, problem: Callable[[], str | None] | None = None) -> Iterator[None]:
        """Interrupt the block (KeyboardInterrupt) when it takes longer than `timeout_s`. Guards may be nested.

        Args:
            section: what the block does, for the message ("weight sync").
            problem: looked at every 2 s, in a thread; a sentence (not None) ends the block at once.

        Raises:
            RuntimeError: not called from the main thread, which is the only one a signal can interrupt.
            StalledError: after the block, which was interrupted.
        """
        if self.timeout_s is None and problem is None:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"the watchdog can guard {section!r} in the main thread only.")
        stalls: list[str] = []
        try:
            with _interruptible(stalls), self._watching(section, problem or (lambda: None), stalls):
                yield
        except BaseException as error:
            if not stalls:  # the section's own error, an outer guard's interrupt, or Ctrl-C
                raise
            raise StalledError(stalls[0]) from error

    @contextmanager
    def _watching(self, section: str, problem: Callable[[], str | None], stalls: list[str]) -> Iterator[None]:
        done = threading.Event()
        arguments = (section, problem, done, stalls)
        watch = threading.Thread(target=self._watch, args=arguments, name=f"watchdog: {section}", daemon=True)
        watch.start()
        try:
            yield
        finally:
            try:
                done.set()
                watch.join()
            finally:  # the signal may arrive in the two lines above
                done.set()

    def _watch(self, section: str, problem: Callable[[], str | None], done: threading.Event, stalls: list[str]) -> None:
        found = self._wait(done, problem)
        if done.is_set():
            return
        stack = _main_stack()
        stalls.append(f"{section}: {found}" if found else self._stalled(section, stack))
        logger.error("%s\nThe main thread is here:\n%s", stalls[0], "".join(stack))
        signal.pthread_kill(threading.main_thread().ident, SIGNAL)
        if done.wait(self.grace_s):
            return
        logger.critical(
            "%s did not end %g s after it was interrupted; this process ends now. The main thread is here:\n%s",
            section,
            self.grace_s,
            "".join(_main_stack()),
        )
        os._exit(EXIT_CODE)

    def _wait(self, done: threading.Event, problem: Callable[[], str | None]) -> str | None:
        """Wait until the block is done, the time is up, or there is a problem, which is returned."""
        end = time.monotonic() + (self.timeout_s or math.inf)
        while not done.wait(max(0.0, min(LOOK_S, end - time.monotonic()))):
            found = problem()
            if found or time.monotonic() >= end:
                return found
        return None

    def _stalled(self, section: str, stack: list[str]) -> str:
        return f"{section} made no progress for {self.timeout_s:g} s: {_last_line(stack)}"


@contextmanager
def _interruptible(stalls: list[str]) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread when the signal arrives and there is a stall.

    No other exception gets out of `ray.get`, which looks for signals itself, and of uvloop's event loop.
    """
    previous = signal.getsignal(SIGNAL)

    def interrupt(signum, frame):
        if stalls:
            raise KeyboardInterrupt
        if callable(previous):  # the signal is for an outer guard
            previous(signum, frame)

    signal.signal(SIGNAL, interrupt)
    try:
        yield
    finally:
        signal.signal(SIGNAL, previous)


def _main_stack() -> list[str]:
    """The main thread's stack, outermost call first, as `traceback.format_stack` gives it."""
    return traceback.format_stack(sys._current_frames()[threading.main_thread().ident])


def _last_line(stack: list[str]) -> str:
    return " ".join(stack[-1].split()) if stack else "no Python frame"
