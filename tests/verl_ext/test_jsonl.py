"""JSON lines with a torn end, as a kill between two writes leaves them."""

import json
import pickle

import pytest

from verl_ext.jsonl import DamagedLine, cut_torn_end, read_lines
from verl_ext.metrics_log import read_metrics

WHOLE = b'{"a": 1}\n{"a": "\xc3\xa4"}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.jsonl"


def test_lines_stand_where_they_say(path):
    path.write_bytes(WHOLE)
    lines = list(read_lines(path))
    assert [(line.number, line.row) for line in lines] == [(1, {"a": 1}), (2, {"a": "ä"})]
    assert [json.loads(WHOLE[line.start : line.start + line.length]) for line in lines] == [{"a": 1}, {"a": "ä"}]


@pytest.mark.parametrize("torn", [b'{"a', b'{"a": 3}', b'{"a\n', b"\0\0\0", b"\xff\n", b"[1]\n", b'{"b": 3}\n'])
def test_a_torn_last_line_has_no_row(path, torn):
    path.write_bytes(WHOLE + torn)
    assert [line.row is None for line in read_lines(path, lambda row: "a" in row)] == [False, False, True]


@pytest.mark.parametrize("damaged", [b"no json\n", b"[1]\n", b"\n", b"\0\0\0\n", b'{"b": 3}\n'])
def test_a_damaged_line_before_the_last_is_an_error_after_the_rows_before_it(path, damaged):
    path.write_bytes(WHOLE + damaged + WHOLE)
    lines = read_lines(path, lambda row: "a" in row, "a row with an a")
    assert [next(lines).number, next(lines).number] == [1, 2]
    with pytest.raises(DamagedLine, match=r"x\.jsonl, line 3: not a row with an a\.") as error:
        next(lines)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value), "it crosses processes"


def test_an_empty_file_has_no_lines(path):
    path.touch()
    assert list(read_lines(path)) == []
    assert read_metrics(path) == ([], False)


@pytest.mark.parametrize("torn", [b"", b'{"a', b'{"a": 3}', b"\0"])
def test_a_torn_end_is_cut_off(path, torn):
    path.write_bytes(WHOLE + torn)
    cut_torn_end(path)
    assert path.read_bytes() == WHOLE


def test_metrics_are_rows_with_a_step(path):
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": "3"}\n')
    assert read_metrics(path) == ([{"step": 1}, {"step": 2}], True)
    path.write_text('{"step": 1}\n{"steps": 2}\n{"step": 3}\n')
    with pytest.raises(DamagedLine, match='line 2: not a JSON object with an integer "step"'):
        read_metrics(path)
