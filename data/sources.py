"""Reads rows from a hub id or a local jsonl, json, csv, parquet file or saved `datasets` folder, one at a time."""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from verl_ext.files import sha256_of

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FIELD_LIMIT = 1 << 24  # characters of one csv field

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its columns


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub."""

    hub_id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    def rows(self) -> Iterator[Row]:
        import datasets

        try:
            dataset = datasets.load_dataset(self.hub_id, self.config, split=self.split, revision=self.revision)
        except Exception as error:  # noqa: BLE001 - hub, network, parsing: all end in the same sentence
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{self.hub_id}: the data set cannot be loaded ({reason})") from None
        return _numbered(dataset, self.hub_id)

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source."""
        return {"hub_id": self.hub_id, "config": self.config, "split": self.split, "revision": self.revision}


@dataclass(frozen=True)
class LocalSource:
    """A file or a folder written by `Dataset.save_to_disk`."""

    path: Path
    split: str = "train"

    def rows(self) -> Iterator[Row]:
        if self.path.is_dir():
            return _numbered(_saved_dataset(self.path, self.split), self.path.name)
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
        return readers[self.path.suffix.lower()](self.path)

    def describe(self) -> dict[str, Any]:
        files = sorted(p for p in self.path.rglob("*") if p.is_file()) if self.path.is_dir() else [self.path]
        digest = hashlib.sha256()
        for file in files:
            digest.update(bytes.fromhex(sha256_of(file)))
        sha256 = sha256_of(self.path) if self.path.is_file() else digest.hexdigest()
        return {"path": str(self.path), "sha256": sha256, "revision": None}


def open_source(source: str, config: str | None = None, split: str = "train", revision: str | None = None):
    """A LocalSource if `source` exists here, else a HubSource if it looks like owner/name. Raises DataError."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{source}: the file must be one of {', '.join(SUFFIXES)}")
    if path.exists():
        return LocalSource(path, split)
    if _HUB_ID.fullmatch(source) and path.suffix.lower() not in SUFFIXES:
        return HubSource(source, config, split, revision)
    raise DataError(f"{source}: there is no such file or folder")


def _numbered(rows: Iterable[Any], name: str) -> Iterator[Row]:
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except UnicodeDecodeError:
        raise DataError(f"{name}, after row {number}: not UTF-8 text") from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path.name}, line {number}"
            if line.strip():
                yield where, _json_object(line, where)


def _json_object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, not {type(value).__name__}")
    return value


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: must be a list of objects, not {type(rows).__name__}")
    for where, row in _numbered(rows, path.name):
        if not isinstance(row, dict):
            raise DataError(f"{where}: must be a JSON object, not {type(row).__name__}")
        yield where, row


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                where = f"{path.name}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: the number of fields differs from the header's {len(reader.fieldnames)}")
                yield where, row
        except csv.Error as error:
            raise DataError(f"{path.name}, line {reader.reader.line_num}: not valid CSV ({error})") from None
        except UnicodeDecodeError:
            raise DataError(f"{path.name}, after line {reader.line_num}: not UTF-8 text") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=1024)
        yield from _numbered((row for batch in batches for row in batch.to_pylist()), path.name)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _saved_dataset(path: Path, split: str) -> Any:
    import datasets

    try:
        dataset = datasets.load_from_disk(str(path))
    except (FileNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a folder written by Dataset.save_to_disk ({reason})") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise DataError(f"{path}: no split {split!r}; the folder has {', '.join(dataset)}")
        return dataset[split]
    return dataset
