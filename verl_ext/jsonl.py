"""JSON lines that a killed process may have left with a torn end: one JSON object per line, appended and flushed whole."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """A line: `number` from 1, `start` and `length` in bytes with the line break, and its `row`; None if it is torn."""

    number: int
    start: int
    length: int
    row: dict[str, Any] | None


class DamagedLine(ValueError):
    """A line before the last is none of the file's: no write that was interrupted leaves that."""

    def __init__(self, path: Path, number: int, reason: str):
        super().__init__(f"{path}, line {number}: {reason}.")
        self.path, self.number, self.reason = path, number, reason

    def __reduce__(self):
        return type(self), (self.path, self.number, self.reason)


def read_lines(
    path: Path, accept: Callable[[dict[str, Any]], bool] = lambda row: True, wanted: str = "a JSON object"
) -> Iterator[Line]:
    """Every line of a file, one at a time.

    The last line is torn, and has no row, when it has no line break or no row that is accepted.

    Args:
        accept: whether a JSON object is a row of this file; `wanted` says in an error which ones are.

    Raises:
        DamagedLine: a line before the last has no row that is accepted.
    """
    last = None
    for line in _lines(path, accept):
        if last is not None:
            if last.row is None:
                raise DamagedLine(path, last.number, f"not {wanted}")
            yield last
        last = line
    if last is not None:
        yield last


def cut_torn_end(path: Path) -> None:
    """Cut off what follows the last line break."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _lines(path: Path, accept: Callable[[dict[str, Any]], bool]) -> Iterator[Line]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = _row(line)
            yield Line(number, start, len(line), row if row is not None and accept(row) else None)
            start += len(line)


def _row(line: bytes) -> dict[str, Any] | None:
    """The object of a whole line."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
