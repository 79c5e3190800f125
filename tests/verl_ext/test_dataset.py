"""Stable question ids."""

import pytest

from verl_ext.dataset import index_questions, question_id


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
    with pytest.raises(ValueError, match=r"data\.train_files.*extra_info\.question_id"):
        question_id(info)


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
