"""The progress of generation: a bar with tokens per second and time left, or a line every LINE_S where there is no terminal."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_S = 30.0  # between lines without a terminal
PACE_MIN_S = 20.0  # of samples, before a time left is said
PACE_S = 600.0  # over which the pace is taken for the time left: responses finish in bursts


class Meter:
    """Counts samples and tokens of this session.

    Args:
        done, total: samples that are there already, and all.
    """

    def __init__(self, console: Console, done: int, total: int):
        columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TextColumn("samples,"),
                   TextColumn("{task.fields[pace]:,.0f} tokens/s, left"), TimeRemainingColumn())  # fmt: skip
        self._bar = Progress(*columns, console=console, speed_estimate_period=PACE_S, disable=not console.is_terminal)
        self._task = self._bar.add_task("", completed=done, total=total, pace=0.0)
        self._console, self._done, self._total = console, done, total
        self._start = self._line = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first samples came, and how many
        self.samples = self.tokens = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def advance(self, samples: int, tokens: int) -> None:
        """Count what was just generated."""
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens
        self._first = self._first or (time.monotonic(), self.samples)
        self._bar.update(self._task, advance=samples, pace=self.tokens_per_second)
        if not self._console.is_terminal and time.monotonic() - self._line > LINE_S:
            self._line = time.monotonic()
            self._console.print(self.line(), highlight=False)

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the pace since the first samples came; None until it has been watched for PACE_MIN_S.

        Before that engines start, and the first samples wait for all that were begun with them.
        """
        if self._first is None or self.samples == self._first[1] or time.monotonic() - self._first[0] < PACE_MIN_S:
            return None
        when, came = self._first
        return (time.monotonic() - when) / (self.samples - came) * (self._total - self._done - self.samples)

    def line(self) -> str:
        """Where generation stands, in one line."""
        left = "time left not known yet" if self.left_s is None else f"about {self.left_s / 60:,.0f} min left"
        return (
            f"generating: {self._done + self.samples:,} of {self._total:,} samples, "
            f"{self.tokens_per_second:,.0f} tokens/s, {left}"
        )

    def __enter__(self) -> "Meter":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
