"""Questions in verl's schema: stable ids, rows, columns, and the files that a run names."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from verl_ext.data_files import open_file
from verl_ext.data_problems import REQUIRED_COLUMNS, file_problems, schema_problems
from verl_ext.dataset import (
    index_questions,
    manifest_of,
    paths_of,
    question_id,
    read_rows,
    rows_by_question,
    verl_row,
)


@pytest.mark.parametrize(
    ("info", "question"),
    [
        ({"question_id": "9f3a", "index": 4}, "9f3a"),
        ({"index": 4}, "4"),
        ({"index": 0}, "0"),
        ({"question_id": None, "index": 7}, "7"),
        ({"question_id": 12}, "12"),
    ],
)
def test_the_id_is_the_question_id_or_else_the_index(info, question):
    assert question_id(info) == question


@pytest.mark.parametrize("info", [None, {}, {"split": "train"}, {"question_id": None, "index": None}])
def test_a_row_without_an_id_is_refused(info):
    with pytest.raises(ValueError, match=r"neither extra_info\.question_id nor extra_info\.index"):
        question_id(info)
    with pytest.raises(ValueError, match=r"data\.train_files: a row has neither extra_info\.question_id"):
        index_questions([{"index": 1}, info])
    assert question_id(info, default=7) == "7"


def test_rows_are_found_by_id():
    infos = [{"question_id": "b"}, {"question_id": "a"}, {"index": 2}]
    assert index_questions(infos) == {"b": 0, "a": 1, "2": 2}


@pytest.mark.parametrize(
    "infos",
    [
        [{"question_id": "a"}, {"question_id": "b"}, {"question_id": "a"}],
        [{"index": 0}, {"index": 1}, {"index": 0}],  # verl's default index is 0 for every row
        [{"question_id": "5"}, {"index": 1}, {"index": 5}],
    ],
)
def test_duplicates_are_refused_with_id_and_rows(infos):
    with pytest.raises(ValueError, match=r"data\.train_files: question id '(a|0|5)' occurs in rows 0 and 2"):
        index_questions(infos)


# ---- files


def row(i: int, **info) -> dict:
    return verl_row("math", [{"role": "user", "content": f"{i} + 1?"}], str(i + 1), f"q{i}", "train", i, **info)


def write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_row_is_in_verls_schema():
    table = pa.Table.from_pylist([row(0, think_format=True)])
    assert list(schema_problems(table.schema)) == []
    assert table.to_pylist()[0]["extra_info"] == {
        "split": "train",
        "index": 0,
        "question_id": "q0",
        "think_format": True,
    }


@pytest.mark.parametrize("column", REQUIRED_COLUMNS)
def test_a_missing_column_is_named(column):
    schema = pa.Table.from_pylist([row(0)]).drop_columns([column]).schema
    assert list(schema_problems(schema)) == [
        f"column '{column}' is missing; verl's schema has data_source, prompt, reward_model, extra_info"
    ]


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("data_source", 3, "a string"),
        ("prompt", "1 + 1?", "a list of {role, content} messages"),
        ("prompt", [{"role": "user"}], "a list of {role, content} messages"),
        ("reward_model", {"style": "rule"}, "a mapping with ground_truth"),
        ("extra_info", "q1", "a mapping with question_id or index"),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path, column, value, wanted):
    path = write(tmp_path / "x.parquet", [row(0) | {column: value}])
    assert [text.partition(";")[0] for text in schema_problems(pq.read_schema(path))] == [
        f"column '{column}' must be {wanted}"
    ]
    with pytest.raises(ValueError, match=rf"x\.parquet: not in verl's schema: column '{column}' must be"):
        read_rows(path)


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_file_that_is_cut_is_named(tmp_path, keep):
    path = write(tmp_path / "x.parquet", [row(i) for i in range(100)])
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as parquet \("):
        read_rows(path)


def test_a_damaged_page_is_no_traceback(tmp_path):
    path = write(tmp_path / "x.parquet", [row(i) for i in range(1000)])
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)  # behind the magic number; the footer with the schema is whole
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as parquet \("):
        list(file_problems(open_file(path)))


def test_rows_are_found_by_question_across_files(tmp_path):
    """By `question_id` or, where a file has none, by `index`, as experience is keyed."""
    first = write(tmp_path / "a.parquet", [row(0), row(1)])
    second = write(tmp_path / "b.parquet", [row(i) | {"extra_info": {"index": i}} for i in (7, 8)])
    found = rows_by_question([first, second])
    assert list(found) == ["q0", "q1", "7", "8"]
    assert found["7"]["reward_model"]["ground_truth"] == "8"


def test_rows_without_an_id_are_refused_by_file(tmp_path):
    path = write(tmp_path / "a.parquet", [row(0) | {"extra_info": {"split": "test"}}])
    with pytest.raises(ValueError, match=r"a\.parquet: a row has neither extra_info\.question_id"):
        rows_by_question([path])


def test_the_files_of_a_run():
    config = OmegaConf.create({"data": {"train_files": "a.parquet", "val_files": ["b.parquet", "c.parquet"]}})
    assert paths_of(config, "train_files") == ["a.parquet"]
    assert paths_of(config, "val_files") == ["b.parquet", "c.parquet"]
    config.data.train_files = []
    with pytest.raises(ValueError, match=r"data\.train_files is not set"):
        paths_of(config, "train_files")


@pytest.mark.parametrize(("content", "found"), [('{"rows": 3}', {"rows": 3}), ("[1]", None), ("{", None), (None, None)])
def test_the_manifest_beside_a_file(tmp_path, content, found):
    if content is not None:
        (tmp_path / "a.manifest.json").write_text(content)
    assert manifest_of(tmp_path / "a.parquet") == found
