"""Odd data files: what `exgrpo check` calls clean goes through verl's loader, agent loop, queue and our reward, and scores 1.

What it refuses is refused by file, column or row, and does fail or score 0 on that way.
"""

import datetime
import decimal
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from real_loader import MODEL, Loaded, close
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo import core_algos as advantages
from verl.trainer.ppo.v1 import agent_loop_tq, trainer_base
from verl.workers.utils import losses
from whole_runs import clear_queue

from recipe.exgrpo.checks.data import data_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.trainer import rows
from verl_ext.data_problems import ARGUMENTS, FIELDS

pytestmark = [pytest.mark.verl, pytest.mark.long]
ROWS, B, K = 6, 4, 2
SAMPLES = "__rollout_n__"
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))


# ---- files


def row(i: int, **columns) -> dict:
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"{i} + 1 = ?"}],
        "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
        "extra_info": {"index": i, "question_id": f"id{i}"},
    } | columns


def table(first: int = 0, rows: int = ROWS) -> pa.Table:
    return pa.Table.from_pylist([row(i) for i in range(first, first + rows)])


def with_column(name: str, kind: pa.DataType | None, value: Callable[[int], object], first: int = 0) -> pa.Table:
    """The table with `name` replaced or added: `value(i)` in row i."""
    found = table(first)
    column = pa.array([value(i) for i in range(first, first + ROWS)], kind)
    position = found.schema.get_field_index(name)
    return found.append_column(name, column) if position < 0 else found.set_column(position, name, column)


def golds(kind: pa.DataType, value: Callable[[int], object] = lambda i: i + 1, first: int = 0) -> pa.Table:
    fields = pa.struct([("style", pa.string()), ("ground_truth", kind)])
    return with_column("reward_model", fields, lambda i: {"style": "rule", "ground_truth": value(i)}, first)


def prompts(kind: pa.DataType, value: Callable[[int], object] | None = None) -> pa.Table:
    return with_column("prompt", kind, value or (lambda i: row(i)["prompt"]))


def messages(text: pa.DataType, listed=pa.list_) -> pa.DataType:
    return listed(pa.struct([("role", text), ("content", text)]))


def infos(value: Callable[[int], dict], first: int = 0) -> pa.Table:
    return with_column("extra_info", None, value, first)


def of_tables(*tables: pa.Table, **options) -> Callable[[Path], list[str]]:
    """A case: files of these tables, by pyarrow's writer with `options`."""

    def write(folder: Path) -> list[str]:
        paths = [folder / f"part{i}.parquet" for i in range(len(tables))]
        for path, found in zip(paths, tables, strict=True):
            pq.write_table(found, path, **options)
        return [str(path) for path in paths]

    return write


def of_text(text: str, name: str = "a.jsonl") -> Callable[[Path], list[str]]:
    """A case: one file of `text`."""

    def write(folder: Path) -> list[str]:
        (folder / name).write_bytes(text.encode("utf-8"))
        return [str(folder / name)]

    return write


def lines(end: str = "\n", **columns) -> str:
    return end.join(json.dumps(row(i, **columns), ensure_ascii=False) for i in range(ROWS)) + end


def by_pandas(folder: Path) -> list[str]:
    """As people write: a categorical column, an index that is not a range."""
    found = table().to_pandas().sample(frac=1, random_state=0)
    found["data_source"] = found["data_source"].astype("category")
    found["level"] = pd.array([1, None, 3, 4, 5, 6], dtype="Int64")
    found.to_parquet(folder / "a.parquet")
    return [str(folder / "a.parquet")]


def by_datasets(folder: Path) -> list[str]:
    """With features of its own in the file's metadata."""
    found = datasets.Dataset.from_list(table().to_pylist()).add_column("level", [0, 1, 0, 1, 0, 1])
    found = found.cast_column("level", datasets.ClassLabel(names=["easy", "hard"]))
    found.to_parquet(folder / "a.parquet")
    return [str(folder / "a.parquet")]


def changed_after_datasets(folder: Path) -> list[str]:
    """Golds became numbers, and the metadata still tells of text."""
    (path,) = by_datasets(folder)
    old = pq.read_schema(path).metadata
    pq.write_table(golds(pa.int64()).replace_schema_metadata(old), path)
    return [path]


def in_row_groups(*sizes: int) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        start = 0
        with pq.ParquetWriter(folder / "a.parquet", table().schema) as writer:
            for size in sizes:
                writer.write_table(table().slice(start, size))
                start += size
        return [str(folder / "a.parquet")]

    return write


def named(name: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table(), folder / name)
        return [str(folder / name)]

    return write


def broken_text(kind: str) -> Callable[[Path], list[str]]:
    """Half of a surrogate pair in the prompt of row 2, as JSON says it, or in bytes."""
    found = [row(i) for i in range(ROWS)]
    found[2]["prompt"][0]["content"] = "\ud835 2 + 1 = ?"
    if kind == "jsonl":
        return of_text("".join(json.dumps(one) + "\n" for one in found))
    texts = [one["prompt"][0]["content"].encode("utf-8", "surrogatepass") for one in found]
    contents = pa.Array.from_buffers(pa.string(), ROWS, pa.array(texts).buffers())
    said = pa.StructArray.from_arrays([pa.array(["user"] * ROWS), contents], ["role", "content"])
    column = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), said)
    return of_tables(table().set_column(1, "prompt", column))


def two_columns_of_one_name(folder: Path) -> list[str]:
    found = table()
    pq.write_table(found.append_column("data_source", found.column("data_source")), folder / "a.parquet")
    return [str(folder / "a.parquet")]


def added(kind: pa.DataType | None, value: Callable[[int], object], name: str = "level") -> Callable[[Path], list[str]]:
    return of_tables(with_column(name, kind, value))


def text(i: int) -> str:
    return str(i + 1)


LATER = ROWS  # number of the first row of a second file
ONE = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
CLEAN = {
    "plain": of_tables(table()),
    **{f"golds in {kind}": of_tables(golds(kind, text)) for kind in TEXTS[1:]},
    **{
        f"golds in {kind}": of_tables(golds(kind))
        for kind in (pa.int64(), pa.int8(), pa.uint64(), pa.float32(), pa.float64())
    },
    "golds in decimals": of_tables(golds(pa.decimal128(9, 2), lambda i: decimal.Decimal(i + 1))),
    "golds in lists of one": of_tables(golds(pa.list_(pa.string()), lambda i: [text(i)])),
    "golds in large lists of one number": of_tables(golds(pa.large_list(pa.float64()), lambda i: [i + 1.0])),
    "golds in lists of fixed size": of_tables(golds(pa.list_(pa.int64(), 1), lambda i: [i + 1])),
    **{f"data source in {kind}": of_tables(with_column("data_source", kind, lambda i: "toy")) for kind in TEXTS[1:]},
    **{
        f"prompts in {kind}": of_tables(prompts(messages(kind))) for kind in (TEXTS[1], TEXTS[3])
    },  # views cannot be written
    "prompts in large lists": of_tables(prompts(messages(pa.string(), pa.large_list))),
    "a blank system message": of_tables(
        prompts(None, lambda i: [{"role": "system", "content": ""}, {"role": "user", "content": f"{i} + 1 = ?"}])
    ),
    "messages with more keys": of_tables(prompts(None, lambda i: [row(i)["prompt"][0] | {"name": None, "weight": 1}])),
    "a prompt with odd characters": of_tables(
        prompts(None, lambda i: [{"role": "user", "content": f"\x00\u202e𝟙 <image> {{{{ 1 }}}} {i} + 1 = ?"}])
    ),
    "ids that are numbers": of_tables(infos(lambda i: {"question_id": i})),
    "an index that is text": of_tables(infos(lambda i: {"index": f"i{i}"})),
    "an index alone": of_tables(infos(lambda i: {"index": i})),
    "more in extra_info": of_tables(
        infos(lambda i: {"index": i, "think_format": False, "answer": None, "more": {"deep": [[1], [2, 3]]}})
    ),
    "a column of nulls": added(pa.null(), lambda i: None),
    "a column of floats, NaN and null": added(pa.float64(), lambda i: (None, float("nan"), 0.5)[i % 3]),
    "a column of truth values": added(pa.bool_(), lambda i: i % 2 == 0),
    "a column of bytes": added(pa.binary(), lambda i: b"\xff\x00"),
    "a column of times": added(pa.timestamp("ns", "UTC"), lambda i: ONE),
    "a column of dates": added(pa.date32(), lambda i: ONE.date()),
    "a column of durations": added(pa.duration("us"), lambda i: datetime.timedelta(i)),
    "a column of decimals": added(pa.decimal128(9, 2), lambda i: decimal.Decimal(i)),
    "a column of lists of any length": added(pa.list_(pa.string()), lambda i: ["a"] * i),
    "a column of tables": added(pa.list_(pa.list_(pa.int64(), 2), 2), lambda i: [[i, i], [i, i]]),
    "a column of lists of mappings": added(None, lambda i: [{"solution": "x", "steps": [1] * j} for j in range(i)]),
    "a column of half precision": added(pa.float16(), lambda i: float(i)),
    "columns in another order": of_tables(table().select(table().column_names[::-1])),
    "columns that may not be null": of_tables(
        table().cast(pa.schema([field.with_nullable(False) for field in table().schema]))
    ),
    "row groups, empty ones among them": in_row_groups(1, 0, 1, 4, 0),
    "pages of a few bytes": of_tables(
        table(), data_page_size=1, use_dictionary=False, compression="gzip", version="1.0"
    ),
    "written by pandas": by_pandas,
    "written by datasets": by_datasets,
    "changed after datasets wrote it": changed_after_datasets,
    "JSON lines": of_text(lines()),
    "JSON lines of Windows": of_text(lines("\r\n")),
    "JSON lines without a last end": of_text(lines().rstrip("\n")),
    "JSON lines with a mark": of_text("\ufeff" + lines()),
    "JSON lines with empty lines": of_text(lines("\n\n")),
    "a JSON array": of_text(json.dumps([row(i) for i in range(ROWS)]), "a.json"),
    "two files": of_tables(table(), table(LATER)),
    "a column in one of two files": of_tables(with_column("level", None, str), table(LATER)),
    "a column of nulls in one of two files": of_tables(
        with_column("level", pa.null(), lambda i: None), with_column("level", None, str, LATER)
    ),
    "text and categories": of_tables(golds(TEXTS[0], text), golds(TEXTS[3], text, LATER)),
    "more in one extra_info than in the other": of_tables(
        infos(lambda i: {"index": i, "think_format": False}), infos(lambda i: {"level": "a", "index": i}, LATER)
    ),
    "an agent": added(None, lambda i: "single_turn_agent", "agent_name"),
    "a name with spaces": named("a b, c=d.parquet"),
    "a hidden folder": named(".hidden/a.parquet"),
}


@dataclass(frozen=True)
class Refused:
    """A case, what is said about it, and the splits that it is refused for; `survives`: nothing fails, it is only wrong."""

    write: Callable[[Path], list[str]]
    said: str
    splits: tuple[str, ...] = ("train_files", "val_files")
    survives: bool = False


TRAIN, VAL = ("train_files",), ("val_files",)
REFUSED = {
    "golds that are true or false": Refused(
        of_tables(golds(pa.bool_(), bool)), "must hold text or numbers; it is bool"
    ),
    "golds that are mappings": Refused(
        of_tables(golds(pa.struct([("a", pa.string())]), lambda i: {"a": text(i)})), "it is struct<a: string>"
    ),
    "golds that are bytes": Refused(of_tables(golds(pa.binary(), lambda i: text(i).encode())), "it is binary"),
    "golds that are times": Refused(
        of_tables(golds(pa.timestamp("s"), int)), "must hold text or numbers; it is timestamp"
    ),
    "golds of several answers": Refused(
        of_tables(golds(pa.list_(pa.string()), lambda i: [text(i)] * (1 + i // 3))),
        "row 3 has no reward_model.ground_truth that a rule can read: it is a list of 2 answers",
    ),
    "golds that are empty lists": Refused(
        of_tables(golds(pa.list_(pa.string()), lambda i: [])), "row 0 has no reward_model.ground_truth that a rule can"
    ),
    "golds that are blank": Refused(
        of_tables(golds(pa.string(), lambda i: text(i) if i < 2 else " ")), "row 2 has no reward_model.ground_truth"
    ),
    "golds that are missing": Refused(
        of_tables(golds(pa.int64(), lambda i: i + 1 if i < 2 else None)), "row 2 has no reward_model.ground_truth"
    ),
    "golds that are no number": Refused(
        of_tables(golds(pa.float64(), lambda i: float("nan"))), "it is nan, which is neither text nor a number"
    ),
    "golds that were rounded": Refused(
        of_tables(golds(pa.float32(), lambda i: i + 0.1)), "row 0 has reward_model.ground_truth 0.1000"
    ),
    "golds of text and numbers": Refused(
        of_tables(golds(pa.string(), text), golds(pa.int64(), first=LATER)),
        "column 'reward_model.ground_truth' is string in {0} and int64 in {1}",
    ),
    "an index of text and numbers": Refused(
        of_tables(infos(lambda i: {"index": i}), infos(lambda i: {"index": str(i)}, LATER)),
        "column 'extra_info.index' is int64 in {0} and string in {1}",
    ),
    "an index of two sizes": Refused(
        of_tables(
            with_column("extra_info", pa.struct([("index", pa.int32())]), lambda i: {"index": i}),
            infos(lambda i: {"index": i}, LATER),
        ),
        "column 'extra_info.index' is int32 in {0} and int64 in {1}",
    ),
    "text and large text": Refused(
        of_tables(golds(TEXTS[0], text), golds(TEXTS[1], text, LATER)),
        "column 'reward_model.ground_truth' is string in {0} and large_string in {1}",
    ),
    "a third file that differs": Refused(
        of_tables(table(), with_column("level", None, int, LATER), with_column("level", None, str, 2 * LATER)),
        "column 'level' is int64 in {1} and string in {2}",
    ),
    "messages with more keys in one file": Refused(
        of_tables(table(), with_column("prompt", None, lambda i: [row(i)["prompt"][0] | {"name": "a"}], LATER)),
        "column 'prompt' is list<",
    ),
    "numbers of samples in one file": Refused(
        of_tables(with_column(SAMPLES, None, lambda i: 2), table(LATER)),
        f"column '{SAMPLES}' is in {{0}} and not in {{1}}",
        VAL,
    ),
    "no number of samples in a row": Refused(
        added(None, lambda i: None if i == 4 else 2, SAMPLES), f"row 4 has no number of samples ({SAMPLES})", VAL
    ),
    "samples that are text": Refused(added(None, str, SAMPLES), "must be whole numbers of samples", VAL, survives=True),
    "numbers of samples in training": Refused(
        added(None, lambda i: 3, SAMPLES), f"column '{SAMPLES}' is for validation", TRAIN, survives=True
    ),
    "an agent in some rows": Refused(
        added(pa.string(), lambda i: None if i % 2 else "single_turn_agent", "agent_name"), "row 1 has agent_name None"
    ),
    "an agent in one file": Refused(
        of_tables(with_column("agent_name", None, lambda i: "single_turn_agent"), table(LATER)),
        "column 'agent_name' is in {0} and not in {1}",
    ),
    **{
        f"a column {name}": Refused(added(None, value, name), f"column '{name}' has a name that verl uses for its own")
        for name, value in {
            **dict.fromkeys(("output", "session_id", "trajectory", "responses", "prompts"), str),
            "priority": lambda i: None if i % 2 else i,
        }.items()
    },
    "a column of maps": Refused(
        added(pa.map_(pa.string(), pa.int64()), lambda i: [("a", i)]), "column 'level' is map<string, int64"
    ),
    "a column of list views": Refused(
        added(pa.list_view(pa.string()), lambda i: ["a"]), "column 'level' is list_view<element: string>, which verl's"
    ),
    "a column of ragged tables": Refused(
        added(pa.list_(pa.list_(pa.int64())), lambda i: [[1] * j for j in range(1 + i)]),
        "row 1 has lists of several lengths in column 'level'",
    ),
    "a first row group that is empty": Refused(in_row_groups(0, 6), "its first row group is empty"),
    "two columns of one name": Refused(two_columns_of_one_name, "column 'data_source' is there more than once"),
    "broken text in parquet": Refused(broken_text("parquet"), "row 2 has text in column 'prompt' that is not UTF-8"),
    "broken text in JSON lines": Refused(broken_text("jsonl"), "cannot be read as JSON ("),
    "golds of text and numbers in JSON lines": Refused(
        of_text(lines() + json.dumps(row(9, reward_model={"style": "rule", "ground_truth": 10})) + "\n"),
        "column 'reward_model.ground_truth' must hold text or numbers; it is extension<arrow.json>",
        survives=True,
    ),
    "a think_format that is text": Refused(
        of_tables(infos(lambda i: {"index": i, "think_format": "false"})),
        "'extra_info.think_format' must be true or false",
    ),
    "a role that is missing": Refused(
        of_tables(prompts(None, lambda i: [{"role": None, "content": f"{i} + 1 = ?"}])),
        "row 0 has no prompt",
        survives=True,
    ),
    "prompts that say nothing": Refused(
        of_tables(prompts(None, lambda i: [{"role": "user", "content": " "}])), "row 0 has no prompt"
    ),
    "the end of a name": Refused(named("a.pq"), "verl reads files whose name ends in .parquet, .json, .jsonl"),
    "the end of a name in capitals": Refused(named("a.PARQUET"), "verl reads files whose name ends in"),
    "a name with a pattern": Refused(named("run [1]/a.parquet"), "in a path for a pattern"),
    "a file that is cut": Refused(of_text("PAR1", "a.parquet"), "cannot be read as parquet ("),
    "JSON that is none": Refused(of_text("{'a': 1}\n"), "cannot be read as JSON ("),
    "fewer questions than a step takes": Refused(
        of_tables(table(rows=B - 1)), f"data.train_batch_size is {B} but data.train_files have {B - 1} questions", TRAIN
    ),
    "the same question twice": Refused(of_tables(table(), table()), "question id 'id0' occurs in rows 0 and 6", TRAIN),
    "no id": Refused(of_tables(infos(lambda i: {"split": "train"})), "neither extra_info.question_id", TRAIN),
    "no rows": Refused(of_tables(table(rows=1).slice(0, 0)), "there are no rows"),
}


# ---- the way that they go


@pytest.fixture(scope="module")
def shipped(compose):
    config = compose(
        "hardware=tiny",
        f"data.train_batch_size={B}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={B}",
        f"actor_rollout_ref.rollout.n={K}",
        f"actor_rollout_ref.model.path={MODEL}",
        "data.filter_overlong_prompts=false",  # takes a process
    )
    OmegaConf.set_struct(config, False)
    return config


@pytest.fixture
def configure(shipped, tmp_path, monkeypatch):
    """configure(files, splits) -> a run on `files` in those splits, good ones in the other."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "good").mkdir()
    good = of_tables(table())(tmp_path / "good")

    def build(files: list[str], splits=(*TRAIN, *VAL)) -> DictConfig:
        chosen = {split: files if split in splits else good for split in (*TRAIN, *VAL)}
        return OmegaConf.merge(shipped, {"data": chosen, "trainer": {"default_local_dir": str(tmp_path / "run")}})

    return build


@pytest.fixture
def worker(transfer_queue, agent_loop_worker):
    yield agent_loop_worker
    close(agent_loop_worker)
    clear_queue()


def found(config) -> list[str]:
    return [finding.text for finding in data_findings(Run.of(config))]


@pytest.mark.parametrize("name", CLEAN)
def test_what_the_check_calls_clean_is_trained_and_validated_on(name, configure, worker, tmp_path):
    config = configure(CLEAN[name](tmp_path))
    assert found(config) == []
    loaded = Loaded(config, worker)
    assert loaded.train() == [1.0] * B * K
    assert loaded.validate() == 1


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, case in REFUSED.items() for split in case.splits])
def test_what_it_refuses_is_said_in_a_sentence(name, split, configure, tmp_path):
    files = REFUSED[name].write(tmp_path)
    (text,) = found(configure(files, (split,)))
    assert text.startswith((f"data.{split}: ", "data.train_batch_size "))
    assert REFUSED[name].said.format(*files) in text
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize("name", [name for name, case in REFUSED.items() if not case.survives])
def test_what_it_refuses_does_fail(name, configure, worker, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    config = configure(REFUSED[name].write(tmp_path), REFUSED[name].splits)
    config.exgrpo.runtime.stall_timeout_s = 2
    try:
        loaded = Loaded(config, worker)
        reached = min(*loaded.train(), loaded.validate())
    except Exception as problem:  # noqa: BLE001 - whatever verl says
        reached = repr(problem)
    assert reached != 1


@pytest.mark.parametrize("rows", [1, 2])
def test_a_validation_of_few_questions_is_one(rows, configure, worker, tmp_path):
    config = configure(of_tables(table(rows=rows))(tmp_path), VAL)
    assert found(config) == []
    assert Loaded(config, worker).validate() == 1


def test_numbers_of_samples_are_for_validation(configure, worker, tmp_path):
    config = configure(added(None, lambda i: 1 + i % 2, SAMPLES)(tmp_path), VAL)
    assert found(config) == []
    assert Loaded(config, worker).validate() == 1


def test_the_reserved_names_are_verls():
    """Arguments of the functions that columns are given to by name, and fields of its queue."""
    worker = agent_loop_tq.AgentLoopWorkerTQ.__ray_actor_class__
    functions = (worker._run_agent_loop, worker._agent_loop_postprocess, SingleTurnAgentLoop.run)
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    assert taken - {"kwargs", "agent_name", "_ray_trace_ctx"} | {"session_id"} == set(ARGUMENTS)
    sources = "".join(map(inspect.getsource, (agent_loop, agent_loop_tq, trainer_base, rows, losses, advantages)))
    assert [name for name in FIELDS if f'"{name}"' not in sources] == []
