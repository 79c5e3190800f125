"""Questions in verl's schema: their rows, their stable ids, and the files that a run names."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_ext.data_files import open_file
from verl_ext.data_problems import file_problems

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
    """All rows of a data file. Raises ValueError naming the file and the first thing that is not verl's schema."""
    found = open_file(file)
    for problem in file_problems(found):
        raise ValueError(f"{file}: not in verl's schema: {problem}")
    return [row for batch in found.batches(None) for row in batch.to_pylist()]


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
