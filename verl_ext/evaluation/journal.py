"""Generations on disk: one JSON object a line, appended and flushed chunk by chunk, put in order at the end.

Workers append to `generations.<shard>.jsonl`. Before they start, and when they are done, `consolidate` moves every complete
chunk into `generations.jsonl`, in order. A chunk is generated in one go and counts only when it is complete, so a run that
was killed and resumed makes the same batches, and the same file, as one that was not.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.evaluation import EvaluationError
from verl_ext.evaluation.questions import Item
from verl_ext.files import replacing

MERGED = "generations.jsonl"


@dataclass(frozen=True)
class Line:
    """Where a row stands, in bytes."""

    file: Path
    start: int
    length: int


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"generations.{shard}.jsonl"


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows and flush them to the disk."""
    with open(path, "ab") as file:
        file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def scan(folder: Path, items: Sequence[Item]) -> dict[int, Line]:
    """Item number -> line, over all files of generations in `folder`.

    A last line that was torn by a kill is passed over. Raises EvaluationError for any other line that is not a row of
    `items`.
    """
    found: dict[int, Line] = {}
    for file in sorted(folder.glob("generations*.jsonl")):
        size = file.stat().st_size
        for number, start, line in _lines(file):
            row = _row(file, number, line, last=start + len(line) == size)
            if row is None:
                continue
            if not _belongs(row, items):
                raise EvaluationError(f"{file} line {number}: a generation of another evaluation; use another --out")
            found.setdefault(row["item"], Line(file, start, len(line)))
    return found


def consolidate(folder: Path, items: Sequence[Item], chunks: Sequence[range]) -> list[range]:
    """Keep complete chunks, in order, in one file; returns the chunks that are still to be generated."""
    found = scan(folder, items)
    missing = [chunk for chunk in chunks if any(item not in found for item in chunk)]
    incomplete = {item for chunk in missing for item in chunk}
    with replacing(folder / MERGED) as new, open(new, "wb") as merged:
        for item in sorted(found.keys() - incomplete):
            merged.write(_bytes_at(found[item]))
    for file in folder.glob("generations.*.jsonl"):
        file.unlink()
    return missing


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the consolidated file, in order."""
    with open(folder / MERGED, "rb") as file:
        for line in file:
            yield json.loads(line)


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, bytes with the line break) of every line."""
    start = 0
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            yield number, start, line
            start += len(line)


def _row(file: Path, number: int, line: bytes, last: bool) -> dict | None:
    """The row of a line; None for a torn last one."""
    try:
        row = json.loads(line)
        if isinstance(row, dict) and line.endswith(b"\n"):
            return row
    except ValueError:
        row = None
    if last:
        return None
    raise EvaluationError(
        f"{file} line {number}: not a generation, the file was altered; remove it or use another --out"
    )


def _belongs(row: Mapping[str, Any], items: Sequence[Item]) -> bool:
    number = row.get("item")
    if not isinstance(number, int) or not 0 <= number < len(items):
        return False
    return Item(row.get("benchmark"), row.get("question"), row.get("sample")) == items[number]


def _bytes_at(line: Line) -> bytes:
    with open(line.file, "rb") as file:
        file.seek(line.start)
        return file.read(line.length)
