"""Generations on disk: one JSON object per line, appended and flushed chunk by chunk, put in order at the end.

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
from verl_ext.jsonl import DamagedLine, read_lines

MERGED = "generations.jsonl"


@dataclass(frozen=True)
class Place:
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


def scan(folder: Path, items: Sequence[Item]) -> dict[int, Place]:
    """Item number -> where its row stands, over all files of generations in `folder`.

    A last line that was torn by a kill is skipped. Raises EvaluationError for any other line that is not a row of
    `items`.
    """
    found: dict[int, Place] = {}
    for file in sorted(folder.glob("generations*.jsonl")):
        try:
            for line in read_lines(file):
                if line.row is not None:
                    _check_item(line.row, items, file, line.number)
                    found.setdefault(line.row["item"], Place(file, line.start, line.length))
        except DamagedLine as problem:
            raise EvaluationError(
                f"{file} line {problem.number}: not a generation, the file was altered; remove it or use another --out"
            ) from problem
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
    yield from (line.row for line in read_lines(folder / MERGED))


def _check_item(row: Mapping[str, Any], items: Sequence[Item], file: Path, line: int) -> None:
    """Raise EvaluationError unless a row is of one of `items`, the one that it says."""
    number = row.get("item")
    known = isinstance(number, int) and 0 <= number < len(items)
    if not known or Item(row.get("benchmark"), row.get("question"), row.get("sample")) != items[number]:
        raise EvaluationError(f"{file} line {line}: a generation of another evaluation; use another --out")


def _bytes_at(place: Place) -> bytes:
    with open(place.file, "rb") as file:
        file.seek(place.start)
        return file.read(place.length)
