"""Data files as verl's loader opens them: parquet or JSON lines, its column types, rows in batches.

verl reads them with the `datasets` package, each file by itself, and joins them by `concatenate_datasets`. What it cannot read
or join is asked of that package, on schemas alone, so that a file of gigabytes takes milliseconds.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PARQUET, JSON = (".parquet",), (".json", ".jsonl")  # verl takes the end of the name as it stands
SUFFIXES = PARQUET + JSON
PATTERN = re.compile(r"[*?\[\]]")


@dataclass(frozen=True)
class DataFile:
    """An open file: its `schema` as it is written, its number of `rows`, and `batches(columns)`, all columns for None."""

    path: str
    schema: pa.Schema
    rows: int
    batches: Callable[[Sequence[str] | None], Iterator[pa.RecordBatch]]


def open_file(path: str | Path) -> DataFile:
    """Raises ValueError naming the file when verl would not take it, or it cannot be read."""
    path = str(path)
    if PATTERN.search(path):
        raise ValueError(f"{path}: verl's loader takes *, ?, [ and ] in a path for a pattern; rename it")
    if path.endswith(PARQUET):
        return _parquet(path)
    if path.endswith(JSON):
        return _json(path)
    raise ValueError(f"{path}: verl reads files whose name ends in {', '.join(SUFFIXES)}")


def _parquet(path: str) -> DataFile:
    with reading(path, "parquet"):
        file = pq.ParquetFile(path)
    if file.metadata.num_rows and not file.metadata.row_group(0).num_rows:
        raise ValueError(f"{path}: its first row group is empty, which verl's loader cannot read; write the file again")

    def batches(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        with reading(path, "parquet"):
            yield from file.iter_batches(columns=None if columns is None else list(columns))

    return DataFile(path, file.schema_arrow, file.metadata.num_rows, batches)


def _json(path: str) -> DataFile:
    """Types are inferred: only the package that verl reads it with knows what it makes of a file."""
    import datasets

    with reading(path, "JSON"), _silent(datasets):
        table = datasets.load_dataset("json", data_files=path)["train"].data.table

    def batches(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        yield from (table if columns is None else table.select(list(columns))).to_batches()

    return DataFile(path, table.schema, table.num_rows, batches)


@contextmanager
def _silent(datasets) -> Iterator[None]:
    """Without progress bars, and without log lines about what becomes one sentence."""
    shown, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """What goes wrong in reading `path` as ValueError: file and reason, one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, pa.ArrowException, DatasetsError, UnicodeError) as problem:
        cause = problem.__cause__ or problem
        reason = (str(cause).splitlines() or ["unreadable"])[0]
        raise ValueError(f"{path}: cannot be read as {kind} ({reason})") from None


# ---- types


def loaded_schema(schema: pa.Schema) -> tuple[pa.Schema, list[str]]:
    """The schema that verl's loader gives the columns, and a clause for each column that it cannot read (left out)."""
    import datasets

    fields, problems = [], []
    for field in schema:
        try:
            found = datasets.Features.from_arrow_schema(pa.schema([field], metadata=schema.metadata))
            fields.append(found.arrow_schema.field(0))
        except (ValueError, TypeError, NotImplementedError):
            problems.append(f"column {field.name!r} is {field.type}, which verl's loader cannot read")
    return pa.schema(fields, metadata=schema.metadata), problems


def differences(files: Sequence[tuple[str, pa.Schema]]) -> Iterator[str]:
    """A clause for each of the files (path, schema) that verl's loader cannot join with one before it."""
    for position, (path, schema) in enumerate(files):
        for before, other in files[:position]:
            if not _joined(other, schema):
                yield _difference(before, other, path, schema)
                break


def _joined(*schemas: pa.Schema) -> bool:
    """Whether `datasets` joins them, asked with a row of nulls each: of files without rows it joins anything."""
    import datasets

    tables = (pa.Table.from_arrays([pa.nulls(1, kind) for kind in schema.types], schema=schema) for schema in schemas)
    try:
        datasets.concatenate_datasets([datasets.Dataset(table) for table in tables])
    except (ValueError, TypeError, AttributeError, pa.ArrowException):
        return False
    return True


def _difference(first: str, ours: pa.Schema, second: str, theirs: pa.Schema) -> str:
    """The column that differs, with both types; of columns that can be joined one by one none is named."""
    for name in (name for name in ours.names if name in theirs.names):
        one, other = ours.field(name), theirs.field(name)
        if not _joined(pa.schema([one], metadata=ours.metadata), pa.schema([other], metadata=theirs.metadata)):
            column, kind, others = _leaf(name, one.type, other.type)
            return f"column {column!r} is {kind} in {first} and {others} in {second}"
    return f"{first} and {second} cannot be joined: {ours.names} and {theirs.names}"


def _leaf(name: str, one: pa.DataType, other: pa.DataType) -> tuple[str, str, str]:
    """The value inside two types that keeps them apart: dotted name, and both types."""
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        theirs = {field.name: field for field in other}
        for field in one:
            if field.name in theirs and not _joined(pa.schema([field]), pa.schema([theirs[field.name]])):
                return _leaf(f"{name}.{field.name}", field.type, theirs[field.name].type)
    return name, str(one), str(other)
