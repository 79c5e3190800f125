"""What is wrong with a data file: columns, and the first row at fault of each kind.

`file_problems` is for every reader of questions, `verl_problems` for a run: what verl's loader, agent loop and reward make of
columns that nobody asked for.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_ext.data_files import DataFile, loaded_schema
from verl_ext.gold import gold_text

REQUIRED_COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")
SAMPLES = "__rollout_n__"
# Columns reach verl's agent loop by name: these are arguments of its own functions, and fields that it or the trainer writes
# for a response, over which a column of the data would go (0.9.1: agent_loop.py, agent_loop_tq.py, trainer_base.py).
ARGUMENTS = ("self", "sampling_params", "trajectory", "trace", "session_id", "output", "validate", "priority")
FIELDS = (
    *("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids", "attention_mask"),
    *(
        "rm_scores",
        "rollout_log_probs",
        "old_log_probs",
        "ref_log_prob",
        "log_probs",
        "entropy",
        "values",
        "advantages",
    ),
    *("returns", "token_level_scores", "token_level_rewards", "num_turns", "extra_fields", "routed_experts"),
    *("multi_modal_data", "multi_modal_inputs", "mm_processor_kwargs", "mm_processor_output", "teacher_ids"),
    *("teacher_logprobs", "tool_extra_fields", "is_replayed", "in_update", "__do_sample__"),
)
RESERVED = frozenset(ARGUMENTS + FIELDS)

Found = tuple[int, str] | None  # row of a batch, and a clause about it


def file_problems(file: DataFile, graded: bool = True) -> Iterator[str]:
    """A clause for everything wrong with the columns of a file, or else with its rows; `graded`: rules need a gold answer.

    Raises ValueError naming the file if it cannot be read.
    """
    wrong = list(schema_problems(file.schema)) or (list(gold_problems(file.schema)) if graded else [])
    yield from wrong or row_problems(file, [_no_source, _bad_prompt, _bad_samples] + [_bad_gold] * graded)


def verl_problems(file: DataFile) -> Iterator[str]:
    """A clause for everything that a run on verl trips over in the columns of a file without `file_problems`."""
    others = [field for field in file.schema if field.name not in COLUMNS]
    wrong = loaded_schema(pa.schema(others, metadata=file.schema.metadata))[1]
    wrong += [
        f"column {field.name!r} has a name that verl uses for its own; rename it"
        for field in others
        if field.name in RESERVED
    ]
    yield from wrong or row_problems(file, [_ragged])


# ---- columns


def schema_problems(schema: pa.Schema) -> Iterator[str]:
    """A clause for each column that is missing, of another type, or in verl's way; nothing more once one is missing."""
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    yield from (f"column {name!r} is there more than once" for name in sorted(twice))
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    if missing:
        yield f"column {missing[0]!r} is missing; verl's schema has {', '.join(REQUIRED_COLUMNS)}"
    if missing or twice:
        return
    loaded, unreadable = loaded_schema(pa.schema([schema.field(name) for name in COLUMNS if name in schema.names]))
    yield from unreadable
    wrong = ((field.name, COLUMNS[field.name][0]) for field in loaded if not COLUMNS[field.name][1](field.type))
    yield from (f"column {name!r} must be {wanted}; it is {schema.field(name).type}" for name, wanted in wrong)
    flag = fields_of(schema.field("extra_info").type).get("think_format", pa.null())
    if not (pa.types.is_boolean(flag) or pa.types.is_null(flag)):
        yield f"column 'extra_info.think_format' must be true or false; it is {flag}"


def fields_of(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Names and types in a mapping; none for any other type."""
    return {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}


def is_text(kind: pa.DataType) -> bool:
    """Text as verl's loader gives it; a column of nulls may be any."""
    found = pa.types
    return found.is_string(kind) or found.is_large_string(kind) or found.is_string_view(kind) or found.is_null(kind)


def _are_messages(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    fields = fields_of(kind.value_type)
    return {"role", "content"} <= fields.keys() and is_text(fields["role"]) and is_text(fields["content"])


def _may_be_gold(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _has_gold(kind: pa.DataType) -> bool:
    return "ground_truth" in fields_of(kind)


# Column -> what it must be, and whether a type is that.
COLUMNS: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "data_source": ("a string", is_text),
    "prompt": ("a list of {role, content} messages", _are_messages),
    "reward_model": ("a mapping with ground_truth", _has_gold),
    "extra_info": ("a mapping with question_id or index", lambda kind: bool(fields_of(kind))),
    SAMPLES: ("whole numbers of samples", pa.types.is_integer),
}


def gold_problems(schema: pa.Schema) -> Iterator[str]:
    """A clause when no rule could compare a response with golds of this type."""
    kind = fields_of(schema.field("reward_model").type)["ground_truth"]
    (loaded,) = loaded_schema(pa.schema([pa.field("gold", kind)]))[0].types
    if not _may_be_gold(loaded):
        yield f"column 'reward_model.ground_truth' must hold text or numbers; it is {kind}"


# ---- rows


def row_problems(file: DataFile, kinds: list[Callable[[pa.RecordBatch], Found]]) -> Iterator[str]:
    """A clause for the first row at fault of each of `kinds`; of a row that cannot be read only that.

    Raises ValueError naming the file if it cannot be read.
    """
    rows, kinds = 0, list(kinds)
    for batch in file.batches(None):
        broken = _not_unicode(batch)
        if broken:
            yield f"row {rows + broken[0]} {broken[1]}"
            return
        for kind in list(kinds):
            found = kind(batch)
            if found:
                kinds.remove(kind)  # the first is enough
                yield f"row {rows + found[0]} {found[1]}"
        rows += len(batch)


def _first(mask: pa.Array, clause: str) -> Found:
    row = pc.index(mask, True).as_py()
    return (row, clause) if row >= 0 else None


def _not_unicode(batch: pa.RecordBatch) -> Found:
    """Text that is none, as half of a surrogate pair: nobody who reads the row survives it."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            for row in range(len(batch)):
                try:
                    column[row].as_py()
                except UnicodeDecodeError:
                    return row, f"has text in column {name!r} that is not UTF-8 (such as half of a surrogate pair)"
        return 0, "or one after it is damaged"
    return None


def _no_source(batch: pa.RecordBatch) -> Found:
    return _first(pc.is_null(batch.column("data_source")), "has no data_source")


def _bad_prompt(batch: pa.RecordBatch) -> Found:
    """Rows with a message that lacks a role or a content, and rows in which no message says anything."""
    prompts = batch.column("prompt")
    messages, owner = pc.list_flatten(prompts), pc.list_parent_indices(prompts)
    role, content = (_text(pc.struct_field(messages, name)) for name in ("role", "content"))
    bare = pc.filter(owner, pc.or_(pc.is_null(role), pc.is_null(content)))
    said = pc.filter(owner, pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(content, "")), ""))
    rows = pa.array(range(len(batch)), owner.type)
    return _first(pc.or_(pc.is_in(rows, bare), pc.invert(pc.is_in(rows, said))), "has no prompt")


def _bad_samples(batch: pa.RecordBatch) -> Found:
    if SAMPLES not in batch.schema.names:
        return None
    counts = pc.fill_null(pc.cast(batch.column(SAMPLES), pa.int64()), 0)
    return _first(pc.less(counts, 1), f"has no number of samples ({SAMPLES})")


def _ragged(batch: pa.RecordBatch) -> Found:
    """verl makes an array of each value for its reward, which lists of lists of several lengths are not."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not (_is_list(field.type) and _is_list(field.type.value_type)):
            continue
        clause = f"has lists of several lengths in column {field.name!r}, which verl's reward cannot take"
        for row, value in enumerate(column.to_pylist()):
            try:
                np.array([value])
            except ValueError:
                return row, clause
    return None


def _bad_gold(batch: pa.RecordBatch) -> Found:
    golds, name = pc.struct_field(batch.column("reward_model"), "ground_truth"), "reward_model.ground_truth"
    if is_text(golds.type):
        blank = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(_text(golds), "")), "")
        return _first(blank, f"has no {name}")
    for row, value in enumerate(golds.to_pylist()):
        try:
            gold_text(value)
        except ValueError as problem:
            return row, f"has no {name} that a rule can read: it {problem}"
        if _is_rounded(golds.type, value):
            return row, f"has {name} {value!r} in {golds.type}, which has rounded it"
    return None


def _is_rounded(kind: pa.DataType, value: Any) -> bool:
    """A fraction in less than double precision is another number than the one that was written."""
    if _is_list(kind):
        return _is_rounded(kind.value_type, value[0])
    return (pa.types.is_float32(kind) or pa.types.is_float16(kind)) and not float(value).is_integer()


def _text(values: pa.Array) -> pa.Array:
    """In the one type of text that all of pyarrow's functions know."""
    return values.cast(pa.large_string())


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
