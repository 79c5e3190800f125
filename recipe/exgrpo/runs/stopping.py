"""Ending a run in order: a signal to the driver becomes a file in the run folder, which the trainer looks for every step.

The driver and the trainer are two processes, on a cluster on two machines, and the trainer's is busy; the run folder is what
both see. Touching `run.stop` by hand does the same as a signal.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

NAME = "run.stop"
OWN_GROUPS = "RAY_process_group_cleanup_enabled"  # read by Ray's daemon when it starts: a process group for each worker
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED = 75  # EX_TEMPFAIL: run the same command again
LEAVE_S = 30.0  # to unwind after the second signal


class Stopped(Exception):
    """The run was asked to stop before its first step; there is nothing to save."""


def requested(folder: str | Path) -> bool:
    """Whether the run in `folder` has been asked to stop."""
    return (Path(folder) / NAME).exists()


class Signals:
    """What SIGTERM, SIGINT and SIGUSR1 do to a run: the first asks it to stop, a second, or the end of the grace, ends it.

    Args:
        folder: the run folder.
        grace_s: seconds from the first signal to the end; None waits for ever.
        leave: ends the process with an exit code at once, when unwinding does not.
    """

    def __init__(self, folder: str | Path, grace_s: float | None, leave: Callable[[int], None] = os._exit) -> None:
        self.path = Path(folder) / NAME
        self.grace_s = grace_s
        self.first: signal.Signals | None = None
        self.last: signal.Signals | None = None
        self._leave = leave
        self._timers: list[threading.Timer] = []

    def install(self) -> None:
        """Take the signals over, from now on; Ray takes SIGTERM for itself while it starts, so call it again then.

        Ray's workers, and with them vLLM's engines, leave our process group, to all of which a terminal sends Ctrl-C.
        """
        os.environ.setdefault(OWN_GROUPS, "1")
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def close(self) -> None:
        """Withdraw the request: the run is over."""
        for timer in self._timers:
            timer.cancel()
        self.path.unlink(missing_ok=True)

    @property
    def code(self) -> int:
        """Exit code of a run that was ended at once, as a shell has it: 128 and the signal."""
        return 128 + int(self.last or self.first or signal.SIGINT)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.first is None:
            self._ask(signal.Signals(number))
        else:
            self._end(signal.Signals(number))

    def _ask(self, number: signal.Signals) -> None:
        self.first = number
        self.path.touch()
        limit = f"in at most {self.grace_s:g} s" if self.grace_s else "without a limit"
        logger.warning(
            "%s: the run ends after this step, saved, %s; a second signal ends it at once", number.name, limit
        )
        if self.grace_s:
            self._after(self.grace_s, self._out_of_time)

    def _out_of_time(self) -> None:
        logger.error("the step did not end within exgrpo.runtime.stop_grace_s=%g s", self.grace_s)
        os.kill(os.getpid(), self.first)

    def _end(self, number: signal.Signals) -> None:
        if self.last is None:
            self.last = number
            self._after(LEAVE_S, lambda: self._leave(self.code))
        raise KeyboardInterrupt  # the only exception that gets out of ray.get

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)
