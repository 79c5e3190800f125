"""End a run that has stopped making progress, instead of waiting for ever.

A vLLM worker that dies while it loads weights leaves verl's trainer in `ray.get` without a time limit. The watchdog
interrupts the main thread with a signal, whose Python handler raises: `ray.get`, `asyncio.run`, `time.sleep` and locks
all let it through.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

# Ignored by default and used by nothing here, so that a signal which arrives just after a section ended does no harm.
SIGNAL = signal.SIGURG
EXIT_CODE = 86


class StalledError(RuntimeError):
    """A part of the run made no progress within its time limit."""


class Watchdog:
    """Time limits for sections of the main thread.

    Args:
        timeout_s: seconds a guarded section may take; None or 0 guards nothing.
        grace_s: seconds the section gets to unwind after `StalledError` was raised in it. If it is still there, because
            it swallows the error or hangs where no Python code runs, the process ends with exit code 86.

    Raises:
        ValueError: a negative limit.
    """

    def __init__(self, timeout_s: float | None, grace_s: float = 60.0):
        if (timeout_s or 0) < 0 or grace_s < 0:
            raise ValueError(f"a watchdog needs limits of 0 s or more, not timeout_s={timeout_s}, grace_s={grace_s}.")
        self.timeout_s = timeout_s or None
        self.grace_s = grace_s

    @contextmanager
    def guard(self, section: str) -> Iterator[None]:
        """Raise `StalledError` inside the block when it takes longer than `timeout_s`. Guards may be nested.

        Args:
            section: what the block does, for the message ("weight sync").

        Raises:
            RuntimeError: not called from the main thread, which is the only one a signal can interrupt.
            StalledError: the time is over.
        """
        if self.timeout_s is None:
            yield
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"the watchdog can guard {section!r} in the main thread only.")
        done, stalls, previous = threading.Event(), [], signal.getsignal(SIGNAL)

        def interrupt(signum, frame):
            if stalls:
                raise StalledError(stalls[0])
            if callable(previous):  # the signal is for an outer guard
                previous(signum, frame)

        signal.signal(SIGNAL, interrupt)
        arguments = (section, done, stalls)
        watch = threading.Thread(target=self._watch, args=arguments, name=f"watchdog: {section}", daemon=True)
        watch.start()
        try:
            yield
        finally:
            try:
                done.set()
                watch.join()
            finally:  # the signal may raise in the two lines above
                done.set()
                signal.signal(SIGNAL, previous)

    def _watch(self, section: str, done: threading.Event, stalls: list[str]) -> None:
        if done.wait(self.timeout_s):
            return
        stack = _main_stack()
        stalls.append(f"{section} made no progress for {self.timeout_s:g} s: {_last_line(stack)}")
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


def _main_stack() -> list[str]:
    """The main thread's stack, outermost call first, as `traceback.format_stack` gives it."""
    return traceback.format_stack(sys._current_frames()[threading.main_thread().ident])


def _last_line(stack: list[str]) -> str:
    return " ".join(stack[-1].split()) if stack else "no Python frame"
