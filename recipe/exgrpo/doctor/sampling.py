"""Memory over time while a run goes on, and its peak in each phase of the run."""

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

logger = logging.getLogger(__name__)

Sample = tuple[float, float]  # seconds since the epoch, bytes
PHASES = ("start", "rollout", "update")
EDGE_S = 0.2
UNREADABLE = (OSError, ValueError, psutil.Error, subprocess.SubprocessError)


def tree_bytes(pid: int) -> float:
    """Memory of a process and all its descendants, what they share counted once (PSS of Linux)."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return float(sum(map(_own_bytes, [root, *root.children(recursive=True)])))
    return 0.0


def _own_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it is gone, or another user's
        return 0


@contextlib.contextmanager
def sampled(read: Callable[[], float], interval_s: float = 1.0) -> Iterator[list[Sample]]:
    """The list of samples that `read` gives, growing until the block is left. The first failure of `read` ends it."""
    samples: list[Sample] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            try:
                samples.append((time.time(), read()))
            except UNREADABLE as problem:
                logger.warning("memory is no longer read: %s", problem)
                return
            over.wait(interval_s)

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def phase_spans(rows: Sequence[tuple[float, dict]]) -> dict[str, list[tuple[float, float]]]:
    """Phase -> (begin, end) in seconds since the epoch, from rows of metrics.jsonl and when each was written.

    A row is written at the end of its step, which begins with the rollout (`timing_s/gen`) and ends with the weight sync
    (`timing_s/update_weights`), after which vLLM has its memory again: both are of the rollout. Log-probs and update are
    between them, the start is all that is before the first step.
    """
    spans: dict[str, list[tuple[float, float]]] = {phase: [] for phase in PHASES}
    for written, row in rows:
        begin = written - row.get("timing_s/step", 0.0)
        generated = begin + row.get("timing_s/gen", 0.0)
        updated = written - row.get("timing_s/update_weights", 0.0)
        if not spans["start"]:
            spans["start"].append((0.0, begin))
        spans["rollout"] += [(begin, generated), (updated, written)]
        spans["update"].append((generated, updated))
    return spans


def peaks(samples: Sequence[Sample], rows: Sequence[tuple[float, dict]]) -> dict[str, float | None]:
    """Phase -> bytes of the largest sample within it; None for one that no sample fell into. Without rows all is start."""
    spans = phase_spans(rows) if rows else {"start": [(0.0, float("inf"))]}
    return {
        phase: max((size for when, size in samples if _within(when, spans.get(phase, ()))), default=None)
        for phase in PHASES
    }


def _within(when: float, spans: Sequence[tuple[float, float]]) -> bool:
    """Not at the edge of one: a sample takes its time, and may be of what comes next."""
    return any(begin + EDGE_S <= when < end - EDGE_S for begin, end in spans)
