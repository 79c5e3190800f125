"""Child processes that answer within a time, or are ended with everything that they started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from recipe.exgrpo.presets.compose import ROOT
from verl_ext.text import printable


@dataclass(frozen=True)
class Answer:
    """`code`: the exit code, None where it was ended at its limit."""

    code: int | None
    out: str
    err: str

    @property
    def last_word(self) -> str:
        """The last line of its errors, control characters spelled out."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return printable(lines[-1]) if lines else "it said nothing"


def ask(command: Sequence[str], limit_s: float) -> Answer:
    """Run a command in the root of the checkout, for `limit_s` seconds at most."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit_s)
        return Answer(process.returncode, out, err)
    except subprocess.TimeoutExpired:
        end_session(process)
        return Answer(None, *process.communicate())
    finally:
        if process.poll() is None:
            end_session(process)


def end_session(process: subprocess.Popen) -> None:
    """Kill a process that leads a session of its own, and all that is still in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
