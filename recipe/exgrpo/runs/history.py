"""`history.jsonl` in the run folder: one JSON object per step, with outcomes of its questions and what was replayed and why.

What a line holds is written by `trainer.step.Step.history`; `exgrpo browse` reads it.
"""

import json
import logging
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from verl_ext.files import keep_copy, write_atomically
from verl_ext.jsonl import Line, cut_torn_end, read_lines

logger = logging.getLogger(__name__)
FILE = "history.jsonl"
LISTS = ("question", "solved", "size", "joined", "replayed", "choices")
MB = 1_000_000


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The steps of a history.jsonl, one by one; a torn last line is left out. Raises DamagedLine, a ValueError."""
    return (line.row for line in _lines(path) if line.row is not None)


class History:
    """Appends a line per step, of at most `max_mb` megabytes in all: beyond that the oldest half goes. None: no file.

    Raises DamagedLine where the file that is there holds a line, before its last, that is not a step.
    """

    def __init__(self, path: Path, max_mb: float | None) -> None:
        self.path, self.max_bytes = path, None if max_mb is None else int(max_mb * MB)
        if self.max_bytes is not None and path.is_file():
            cut_torn_end(path)

    def append(self, step: dict[str, Any]) -> int:
        """Write a step, whole and flushed; returns the bytes of its line."""
        if self.max_bytes is None:
            return 0
        line = (json.dumps(step, allow_nan=False, separators=(",", ":")) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(line)
        if self.path.stat().st_size > self.max_bytes:
            self._halve()
        return len(line)

    def rewind(self, step: int) -> None:
        """Drop the steps after `step`: they belong to a run that was interrupted. Where there are some, the file as it was
        stays beside it, as `history.before-000.jsonl`, -001, ..."""
        if not self.path.is_file():
            return
        steps = takewhile(lambda line: line.row is not None and line.row["step"] <= step, _lines(self.path))
        end = max((line.start + line.length for line in steps), default=0)
        if end < self.path.stat().st_size:
            logger.warning(
                "%s: what is after step %d leaves it, and stays in %s", self.path, step, keep_copy(self.path)
            )
            write_atomically(self.path, self.path.read_bytes()[:end])

    def _halve(self) -> None:
        """Keep the newest steps that fit into half the bound."""
        content = self.path.read_bytes()
        kept = content[content.find(b"\n", len(content) - self.max_bytes // 2 - 1) + 1 :]
        write_atomically(self.path, kept)
        logger.info("%s was beyond exgrpo.runtime.history_mb; its newest %d steps stay", self.path, kept.count(b"\n"))


def _lines(path: Path) -> Iterator[Line]:
    return read_lines(path, _is_step, 'a JSON object with an integer "step" and what happened in it')


def _is_step(row: dict[str, Any]) -> bool:
    return isinstance(row.get("step"), int) and all(isinstance(row.get(name), list) for name in LISTS)
