"""Questions as parquet in verl's schema: their columns, their stable ids, and the files that a run names."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import DictConfig

REQUIRED_COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")
SPLITS = ("train_files", "val_files")


def question_id(extra_info: Mapping | None, default: object = None) -> str:
    """Id of a row: `extra_info.question_id`, else `extra_info.index`, else `default`. Raises ValueError without any."""
    info = extra_info or {}
    for value in (info.get("question_id"), info.get("index"), default):
        if value is not None:
            return str(value)
    raise ValueError(
        "a row has neither extra_info.question_id nor extra_info.index; experience needs a stable id "
        "(data/prepare_train.py writes one)."
    )


def index_questions(extra_infos: Iterable[Mapping | None]) -> dict[str, int]:
    """Map question id -> row of the training data. Raises ValueError naming the first id that occurs twice."""
    rows: dict[str, int] = {}
    for row, info in enumerate(extra_infos):
        try:
            question = question_id(info)
        except ValueError as problem:
            raise ValueError(f"data.train_files: {problem}") from None
        if question in rows:
            raise ValueError(
                f"data.train_files: question id {question!r} occurs in rows {rows[question]} and {row}; ids must be unique, "
                "remove the duplicate or set extra_info.question_id."
            )
        rows[question] = row
    return rows


def verl_row(
    data_source: str,
    prompt: list[dict[str, str]],
    ground_truth: str,
    question_id: str,
    split: str,
    index: int,
    **info: Any,
) -> dict[str, Any]:
    """A row: chat messages, gold answer, ids; `info` are further keys of `extra_info`."""
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"split": split, "index": index, "question_id": question_id, **info},
    }


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file. Raises ValueError naming the file and the first thing that is not verl's schema."""
    for problem in schema_problems(read_schema(file)):
        raise ValueError(f"{file}: not in verl's schema: {problem}")
    for problem in missing_values(file):
        raise ValueError(f"{file}: not in verl's schema: {problem}")
    with _parquet_errors(file):
        return pq.read_table(file).to_pylist()


def rows_by_question(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Question id -> its row (the last one, where several have it). Raises ValueError naming the file."""
    rows = {}
    for file in files:
        for row in read_rows(file):
            try:
                rows[question_id(row["extra_info"])] = row
            except ValueError as problem:
                raise ValueError(f"{file}: {problem}") from None
    return rows


def read_schema(file: str | Path) -> pa.Schema:
    """The columns of a parquet file. Raises ValueError naming the file."""
    with _parquet_errors(file):
        return pq.read_schema(file)


def schema_problems(schema: pa.Schema) -> Iterator[str]:
    """A clause for each column that is missing or of another type; nothing more once one is missing."""
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    if missing:
        yield f"column {missing[0]!r} is missing; verl's schema has {', '.join(REQUIRED_COLUMNS)}"
        return
    yield from (f"column {name!r} must be {wanted}; it is {schema.field(name).type}" for name, wanted in _wrong(schema))


def missing_values(file: str | Path, graded: bool = True) -> Iterator[str]:
    """A clause for the first row without prompt, data source or, where rules grade (`graded`), gold answer.

    Raises ValueError naming the file if it cannot be read.
    """
    rows, needed = 0, {"prompt": _no_prompt, "data_source": lambda batch: pc.is_null(batch.column("data_source"))}
    if graded:
        needed["reward_model.ground_truth"] = _no_gold
    with _parquet_errors(file):
        for batch in pq.ParquetFile(file).iter_batches(columns=list(REQUIRED_COLUMNS)):
            for name, mask in list(needed.items()):
                row = pc.index(mask(batch), True).as_py()
                if row >= 0:
                    needed.pop(name)  # the first is enough
                    yield f"row {rows + row} has no {name}"
            rows += len(batch)


def fields_of(kind: pa.DataType) -> set[str]:
    """Names in a mapping; none for any other type."""
    return {field.name for field in kind} if pa.types.is_struct(kind) else set()


def paths_of(config: DictConfig, split: str) -> list[str]:
    """Parquet files of a run's `data.train_files` or `data.val_files`; raises ValueError if there is none."""
    files = config.data[split]
    if not files:
        raise ValueError(f"data.{split} is not set; name at least one parquet file.")
    return [files] if isinstance(files, str) else list(files)


def manifest_of(path: str | Path) -> dict | None:
    """The manifest that data/prepare_*.py writes beside a parquet file; None if there is none that can be read."""
    try:
        found = json.loads(Path(path).with_suffix(".manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def _parquet_errors(file: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as problem:
        reason = (str(problem).splitlines() or ["unreadable"])[0]
        raise ValueError(f"{file}: cannot be read as parquet ({reason})") from None


def _wrong(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    """(column, what it must be)."""
    if not _is_text(schema.field("data_source").type):
        yield "data_source", "a string"
    prompt = schema.field("prompt").type
    message = prompt.value_type if pa.types.is_list(prompt) or pa.types.is_large_list(prompt) else prompt
    if (
        message is prompt
        or not {"role", "content"} <= fields_of(message)
        or not _is_text(message.field("content").type)
    ):
        yield "prompt", "a list of {role, content} messages"
    if "ground_truth" not in fields_of(schema.field("reward_model").type):
        yield "reward_model", "a mapping with ground_truth"
    if not fields_of(schema.field("extra_info").type):
        yield "extra_info", "a mapping with question_id or index"


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _no_gold(batch: pa.RecordBatch) -> pa.Array:
    return pc.is_null(pc.struct_field(batch.column("reward_model"), "ground_truth"))


def _no_prompt(batch: pa.RecordBatch) -> pa.Array:
    """True for rows without messages, or with a message without content."""
    prompts = batch.column("prompt")
    empty = pc.equal(pc.fill_null(pc.list_value_length(prompts), 0), 0)
    contents = pc.struct_field(pc.list_flatten(prompts), "content")
    bare = pc.filter(pc.list_parent_indices(prompts), pc.is_null(contents))
    return pc.or_(empty, pc.is_in(pa.array(range(len(batch)), bare.type), value_set=bare))
