"""Checks of a parquet file against verl's schema: columns, their types, and values that are missing."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from verl_ext.dataset import REQUIRED_COLUMNS

MESSAGES = "a list of {role, content} messages"
# Where a value may be missing: (what it is called, columns that hold it).
PROMPT, GOLD, SOURCE = "prompt", "reward_model.ground_truth", "data_source"


def schema_problems(schema: pa.Schema, media_keys: Iterable[str]) -> Iterator[str]:
    """One sentence for each column that is missing, of another type, or not supported."""
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    if missing:
        yield f"column {missing[0]!r} is missing; verl's schema has {', '.join(REQUIRED_COLUMNS)}."
        return
    yield from (
        f"column {name!r} must be {wanted}; it is {schema.field(name).type}." for name, wanted in _wrong(schema)
    )
    for name in media_keys:
        if name in schema.names:
            yield f"column {name!r} holds multimodal data; ExGRPO replays single-turn text only."
    if "tools_kwargs" in _fields(schema.field("extra_info").type):
        yield "extra_info.tools_kwargs asks for tools; ExGRPO replays single-turn text only."


def missing_values(path: str, graded: bool) -> Iterator[str]:
    """One sentence for the first row without prompt, data source or, where rules grade (`graded`), gold answer."""
    rows, needed = 0, {PROMPT: _no_prompt, SOURCE: lambda batch: pc.is_null(batch.column(SOURCE))}
    if graded:
        needed[GOLD] = lambda batch: pc.is_null(pc.struct_field(batch.column("reward_model"), "ground_truth"))
    for batch in pq.ParquetFile(path).iter_batches(columns=list(REQUIRED_COLUMNS)):
        for name, mask in list(needed.items()):
            row = pc.index(mask(batch), True).as_py()
            if row >= 0:
                needed.pop(name)  # the first is enough
                yield f"row {rows + row} has no {name}; remove it or make the file again (data/prepare_train.py)."
        rows += len(batch)
    if not rows:
        yield "there are no rows; make the file again (data/prepare_train.py)."


def _wrong(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    """(column, what it must be)."""
    if not _is_text(schema.field("data_source").type):
        yield "data_source", "a string"
    prompt = schema.field("prompt").type
    message = prompt.value_type if pa.types.is_list(prompt) or pa.types.is_large_list(prompt) else prompt
    if message is prompt or not {"role", "content"} <= _fields(message) or not _is_text(message.field("content").type):
        yield "prompt", MESSAGES
    if "ground_truth" not in _fields(schema.field("reward_model").type):
        yield "reward_model", "a mapping with ground_truth"
    if not _fields(schema.field("extra_info").type):
        yield "extra_info", "a mapping with question_id or index"


def _fields(kind: pa.DataType) -> set[str]:
    return {field.name for field in kind} if pa.types.is_struct(kind) else set()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _no_prompt(batch: pa.RecordBatch) -> pa.Array:
    """True for rows without messages, or with a message without content."""
    prompts = batch.column("prompt")
    empty = pc.equal(pc.fill_null(pc.list_value_length(prompts), 0), 0)
    contents = pc.struct_field(pc.list_flatten(prompts), "content")
    bare = pc.filter(pc.list_parent_indices(prompts), pc.is_null(contents))
    return pc.or_(empty, pc.is_in(pa.array(range(len(batch)), bare.type), value_set=bare))
