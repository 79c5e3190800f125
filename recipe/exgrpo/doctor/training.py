"""One start of the stack as a child process: followed, bounded in time, its memory sampled, its log kept."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.exgrpo.doctor.plan import SCRIPT, Start
from recipe.exgrpo.doctor.process import end_session
from recipe.exgrpo.doctor.sampling import Sample, sampled, tree_bytes
from recipe.exgrpo.presets.compose import ROOT
from recipe.exgrpo.runs.metrics import FILE
from verl_ext.metrics_log import read_metrics
from verl_ext.text import printable

logger = logging.getLogger(__name__)

POLL_S = 0.5
CARD_S, TREE_S = 0.25, 1.0  # between two looks at the memory: the processes of a run are some twenty
GRACE_S = 30  # for a run that is asked to end
TAIL = 25  # lines of its log that are kept
LONGEST = 400  # characters of a line


@dataclass(frozen=True)
class Outcome:
    """What came of a start. `code`: its exit code, None where it was ended at its limit of time; `rows`: (when it was written,
    row of metrics.jsonl), of this start alone; `memory`: samples; `log`: the last lines of its output."""

    code: int | None
    seconds: float
    rows: Sequence[tuple[float, dict]] = ()
    memory: Sequence[Sample] = ()
    log: Sequence[str] = ()

    @property
    def metrics(self) -> dict[int, dict]:
        """Metrics by step."""
        return {row["step"]: row for _, row in self.rows}

    @property
    def cause(self) -> str:
        """Why it ended before its end: the run's own words, else its last line."""
        if self.code is None:
            return f"no end after {self.seconds:.0f} s; its last line: {self._last}"
        named = [line.partition("Cause: ")[2] for line in self.log if "Cause: " in line]
        return (named or [self._last])[-1]

    @property
    def _last(self) -> str:
        return self.log[-1] if self.log else "it said nothing"


def train(start: Start, limit_s: float, card_bytes: Callable[[], float] | None, told: Callable[[str], None]) -> Outcome:
    """Run a start to its end, or for `limit_s` seconds; `card_bytes` reads the memory of the card (None: that of its
    processes is taken), `told` is called with a word on each step."""
    before = len(_rows(start.run))
    log = start.run.parent / f"{start.name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(**_command(start), stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        reader = (card_bytes, CARD_S) if card_bytes else (lambda: tree_bytes(process.pid), TREE_S)
        with sampled(*reader) as memory:
            rows = _follow(process, start, before, began + limit_s, told)
    finally:
        ended = _end(process)
    code = None if ended else process.returncode
    return Outcome(code, time.time() - began, rows, memory, last_lines(log))


def last_lines(log: Path) -> list[str]:
    """The end of a log, control characters spelled out, progress bars as their last state."""
    lines = log.read_bytes().decode(errors="replace").split("\n")  # a carriage return is no new line here
    return [printable(line.strip().rpartition("\r")[2])[:LONGEST] for line in lines if line.strip()][-TAIL:]


def _command(start: Start) -> dict:
    env: Mapping[str, str] = os.environ | start.environment | {"PYTHON": sys.executable}
    return {"args": ["bash", str(SCRIPT), *start.overrides], "cwd": ROOT, "env": env}


def _rows(run: Path) -> list[dict]:
    path = run / FILE
    return read_metrics(path)[0] if path.is_file() else []


def _follow(
    process: subprocess.Popen, start: Start, before: int, deadline: float, told: Callable[[str], None]
) -> list[tuple[float, dict]]:
    """Rows as they are written, until the process ends or the deadline is over."""
    seen: list[tuple[float, dict]] = []
    told("starting Ray, FSDP and vLLM")
    while True:
        over = process.poll() is not None or time.time() > deadline
        for row in _rows(start.run)[before + len(seen) :]:
            seen.append(((start.run / FILE).stat().st_mtime, row))
            told(f"step {row['step']} of {start.steps}")
        if over:
            return seen
        time.sleep(POLL_S)


def _end(process: subprocess.Popen) -> bool:
    """End what still runs, its whole session if it must be; whether anything did."""
    if process.poll() is not None:
        return False
    for number in (signal.SIGTERM, signal.SIGTERM):  # finish the step and save; at once
        process.send_signal(number)
        try:
            process.wait(GRACE_S)
            return True
        except subprocess.TimeoutExpired:
            logger.warning("the run did not end within %d s of a signal", GRACE_S)
    end_session(process)
    return True
