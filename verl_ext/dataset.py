"""Stable question ids: the key under which experience is stored, and the way back to a dataset row."""

from collections.abc import Iterable, Mapping

REQUIRED_COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")


def question_id(extra_info: Mapping | None) -> str:
    """Id of a dataset row: `extra_info.question_id`, else `extra_info.index`. Raises ValueError when it has neither."""
    info = extra_info or {}
    for key in ("question_id", "index"):
        if info.get(key) is not None:
            return str(info[key])
    raise ValueError(
        "data.train_files: a row has neither extra_info.question_id nor extra_info.index; experience needs a stable id "
        "(data/prepare_train.py writes one)."
    )


def index_questions(extra_infos: Iterable[Mapping | None]) -> dict[str, int]:
    """Map question id -> row. Raises ValueError naming the first id that occurs twice."""
    rows: dict[str, int] = {}
    for row, info in enumerate(extra_infos):
        question = question_id(info)
        if question in rows:
            raise ValueError(
                f"data.train_files: question id {question!r} occurs in rows {rows[question]} and {row}; ids must be unique, "
                "remove the duplicate or set extra_info.question_id."
            )
        rows[question] = row
    return rows
