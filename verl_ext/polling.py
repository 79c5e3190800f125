"""Poll verl's replay buffer at a pace that fits the wait, and notice when a rollout has stalled.

verl's V1 `ReplayBuffer.sample` polls TransferQueue's tags every 2 s, which sets a floor of 2 s under each step, and polls
for ever. The method it sleeps in is replaced on the instance, so that every sampling policy of verl's keeps working.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from verl_ext.watchdog import StalledError

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 60.0
WAITED_SHARE = 0.02
LOOK_S = 2.0  # between two looks for a problem


def install(
    replay_buffer: Any,
    stall_timeout_s: float | None,
    min_interval_s: float = 0.05,
    max_interval_s: float = 2.0,
    problem: Callable[[], str | None] = lambda: None,
) -> AdaptivePoll:
    """Let `replay_buffer` (verl's V1 `ReplayBuffer`) wait through an `AdaptivePoll`, which is returned.

    Raises:
        TypeError: the object has no `_wait_for_next_poll`: another verl version, or no replay buffer.
    """
    if not callable(getattr(replay_buffer, "_wait_for_next_poll", None)):
        raise TypeError(
            f"{type(replay_buffer).__name__} has no _wait_for_next_poll: expected verl 0.9.1's ReplayBuffer."
        )
    poll = AdaptivePoll(replay_buffer, stall_timeout_s, min_interval_s, max_interval_s, problem)
    replay_buffer._wait_for_next_poll = poll
    return poll


class AdaptivePoll:
    """Sleeps 2 % of the time waited so far, within [min_interval_s, max_interval_s]; raises when nothing moves.

    The buffer calls it between two looks at the tags, with the time of its last report, and keeps what it returns for the
    next call. A call with another time than the last one returned is therefore the first of a new wait.

    Args:
        replay_buffer: the buffer whose key sets and rows are watched.
        stall_timeout_s: seconds without a change among them after which the wait ends; None or 0 waits for ever.
        min_interval_s, max_interval_s: bounds of one sleep, in seconds.
        problem: looked at every 2 s; a sentence (not None) ends the wait at once.
        clock, sleep: `time.monotonic` and `time.sleep`, for tests.

    Raises:
        ValueError: intervals that are not 0 < min <= max.
    """

    def __init__(
        self,
        replay_buffer: Any,
        stall_timeout_s: float | None,
        min_interval_s: float = 0.05,
        max_interval_s: float = 2.0,
        problem: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not 0 < min_interval_s <= max_interval_s:
            raise ValueError(f"polling needs 0 < min <= max interval, not {min_interval_s} and {max_interval_s} s.")
        self._buffer = replay_buffer
        self._stall_timeout_s = stall_timeout_s or None
        self._problem, self._looked = problem, 0.0
        self._bounds = (min_interval_s, max_interval_s)
        self._clock = clock
        self._sleep = sleep
        self._last_report: float | None = None
        self._started = self._moved = 0.0
        self._seen: tuple = ()

    def __call__(self, partition_id: str, last_report: float) -> float:
        """Sleep once. Returns the time of the last report (`time.time`), for the next call.

        Raises:
            StalledError: nothing in the partition changed for `stall_timeout_s`, with the counts; or there is a problem.
        """
        now = self._clock()
        self._look(now)
        if last_report != self._last_report:
            self._started = self._moved = now
            self._seen = ()
        counts = self._counts(partition_id)
        state = (*counts.values(), self._tags(partition_id))
        if state != self._seen:
            self._seen, self._moved = state, now
        elif self._stall_timeout_s and now - self._moved >= self._stall_timeout_s:
            raise StalledError(
                f"rollout made no progress for {now - self._moved:.0f} s in partition {partition_id!r}: "
                + ", ".join(f"{count} {name}" for name, count in counts.items())
            )
        low, high = self._bounds
        self._sleep(min(max(WAITED_SHARE * (now - self._started), low), high))
        self._last_report = self._report(partition_id, counts, last_report)
        return self._last_report

    def _look(self, now: float) -> None:
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        found = self._problem()
        if found:
            raise StalledError(f"rollout: {found}")

    def _counts(self, partition_id: str) -> dict[str, int]:
        buffer = self._buffer
        return {
            "pending": len(buffer.pending_keys[partition_id]),
            "running": len(buffer.running_keys[partition_id]),
            "finished": len(buffer.finished_keys[partition_id]),
            "failure": len(buffer.failure_keys[partition_id]),
            "trajectories": len(buffer.partitions[partition_id]),
        }

    def _tags(self, partition_id: str) -> int:
        """Tags set in total: moves when a row that was there already is written again."""
        return sum(len(tag) for tag in self._buffer.partitions[partition_id].values())

    def _report(self, partition_id: str, counts: dict[str, int], last_report: float) -> float:
        now = time.time()
        if now - last_report <= REPORT_INTERVAL_S:
            return last_report
        logger.info("waiting for %r: %s", partition_id, ", ".join(f"{n} {name}" for name, n in counts.items()))
        return now
