"""`metrics.jsonl`: one flat JSON object per step, in the run folder, beside verl's own loggers."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from verl_ext.files import keep_copy, write_atomically
from verl_ext.jsonl import DamagedLine, cut_torn_end, read_lines

logger = logging.getLogger(__name__)
ROW = 'a JSON object with an integer "step"'


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a `metrics.jsonl`, in order, and whether its last line was torn (it is then left out).

    Raises DamagedLine, a ValueError, for a line before the last that is not a JSON object with an integer "step".
    """
    lines = list(read_lines(path, lambda row: isinstance(row.get("step"), int), ROW))
    rows = [line.row for line in lines if line.row is not None]
    return rows, len(rows) < len(lines)


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
        cut_torn_end(self.path)
        self._last = self._last_record()
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
            self._rewrite([*self._records()[:-1], record])
        else:
            self._file.write(_line(record))
        self._last = record

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, by an atomic rewrite: they belong to a run that was interrupted.

        Where there are some, the file as it was stays beside it, as `metrics.before-000.jsonl`, -001, ...
        """
        records = self._records()
        kept = [record for record in records if record["step"] <= step]
        if len(kept) < len(records):
            logger.warning(
                "%s: %d lines after step %d leave it; they stay in %s",
                self.path,
                len(records) - len(kept),
                step,
                keep_copy(self.path),
            )
        self._rewrite(kept)
        self._last = self._last_record()

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

    def _records(self) -> list[dict[str, Any]]:
        """All records; a line that is whole but not one of ours is an error, even the last."""
        records, foreign = read_metrics(self.path)
        if foreign:
            raise DamagedLine(self.path, len(records) + 1, f"not {ROW}")
        return records

    def _last_record(self) -> dict[str, Any] | None:
        records = self._records()
        return records[-1] if records else None

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
