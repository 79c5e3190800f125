"""Stored trajectories as rows of a file, with everything that is known of them: what a file of traces can be made of again."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.inspection import record
from verl_ext.files import replacing

BATCH = 1000  # trajectories in a row group


def rows_of(
    buffer: ExperienceBuffer, handles: Iterable[int], decode: Callable[[list[int]], str] | None, tokenizer: str | None
) -> Iterator[dict]:
    """A JSON-able row for each of `handles`; `tokenizer` is the fingerprint that gives the ids their meaning."""
    for handle in handles:
        found = record(buffer, buffer.trajectory(int(handle)), decode)
        yield found | {"state_group_size": buffer.group_size, "tokenizer": tokenizer}


def schema(decoded: bool):
    """Columns of a parquet file of trajectories, with their text where it is `decoded`."""
    import pyarrow as pa

    return pa.schema(
        {
            "question": pa.string(), "latest_count": pa.int16(), "row": pa.int64(), "reward": pa.float64(),
            "birth_step": pa.int32(), "use_count": pa.int32(), "entropy": pa.float32(), "nll": pa.float32(),
            "drift": pa.float32(), "group": pa.int32(), "group_successes": pa.int16(), "group_size": pa.int16(),
            "advantage": pa.float64(), "source": pa.string(), "behaviour": pa.string(), "chat_template": pa.string(),
            "temperature": pa.float64(), "tools": pa.string(), "prompt_hash": pa.string(), "length": pa.int32(),
            "prompt_ids": pa.list_(pa.int32()),
            "token_ids": pa.list_(pa.int32()), "log_probs": pa.list_(pa.float32()), "mask": pa.list_(pa.bool_()),
            "state_group_size": pa.int16(), "tokenizer": pa.string(),
        } | ({"text": pa.string()} if decoded else {})
    )  # fmt: skip


def write_parquet(path: Path, rows: Iterator[dict], columns) -> int:
    """Write rows as parquet with the pyarrow schema `columns`, a thousand at a time; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = 0
    with replacing(path) as new, pq.ParquetWriter(new, columns) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, columns))
            written += len(batch)
    return written


def write_jsonl(path: Path, rows: Iterator[dict]) -> int:
    """Write rows as JSON objects, one per line; returns how many."""
    written = 0
    with replacing(path) as new, open(new, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            written += 1
    return written
