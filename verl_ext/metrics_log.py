"""`metrics.jsonl`: one flat JSON object a step, in the run folder, beside verl's own loggers."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from verl_ext.files import write_atomically

logger = logging.getLogger(__name__)


class JsonlLogger:
    """Appends `{"step": n, <metric>: value, ...}` lines; a backend for verl's `Tracking` (`log`, `finish`).

    Steps rise from line to line. Each line is written whole and flushed, so `tail -f` follows it; a line torn by a crash
    is cut off when the file is opened again. Values are numbers, booleans or strings; NaN and infinities, which JSON
    does not have, become null.

    Args:
        path: the file; it is made, with its folders, if it does not exist.

    Raises:
        ValueError: the file holds a line that is not a JSON object with a "step".
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        _cut_torn_line(self.path)
        self._last = _last_record(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._refused: set[str] = set()

    def log(self, data: dict[str, Any], step: int) -> None:
        """Append one step. The step logged last is logged again, as validation before training does on resume: the
        line is then replaced by both together.

        Raises:
            ValueError: `step` is before the last line's (a resumed run calls `rewind` first).
        """
        record = {"step": int(step), **self._clean(data)}
        last = self._last
        if last is not None and record["step"] < last["step"]:
            raise ValueError(f"{self.path}: step {step} after step {last['step']}; call rewind({step}) first.")
        if last is not None and record["step"] == last["step"]:
            record = {**last, **record}
            self._rewrite([*_records(self.path)[:-1], record])
        else:
            self._file.write(_line(record))
        self._last = record

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, by an atomic rewrite: they belong to a run that was interrupted."""
        self._rewrite([record for record in _records(self.path) if record["step"] <= step])
        self._last = _last_record(self.path)

    def finish(self) -> None:
        """Close the file."""
        self._file.close()

    def _clean(self, data: dict[str, Any]) -> dict[str, Any]:
        clean = {}
        for name, value in data.items():
            try:
                clean[name] = _scalar(value)
            except (TypeError, ValueError):
                self._warn_once(name, value)
        return clean

    def _warn_once(self, name: str, value: Any) -> None:
        # A metric of another shape must not end a run after days of training.
        if name not in self._refused:
            self._refused.add(name)
            logger.warning("%s: %s is not a scalar (%s), left out", self.path, name, type(value).__name__)

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        self._file.close()
        write_atomically(self.path, "".join(_line(record) for record in records))
        self._file = self.path.open("a", encoding="utf-8", buffering=1)


def _scalar(value: Any) -> Any:
    """`value` as JSON can hold it: numpy and torch scalars unwrapped, NaN and infinities as None."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last newline."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}).") from None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError(f'{where}: not a JSON object with an integer "step".')
    return record


def _last_record(path: Path) -> dict[str, Any] | None:
    records = _records(path)
    return records[-1] if records else None
