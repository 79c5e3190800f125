"""Checks of the parquet files: schema, question ids, agent names, prompt template."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from verl_ext.dataset import (
    fields_of,
    index_questions,
    manifest_of,
    missing_values,
    read_schema,
    schema_problems,
)

SWITCHES = {"train_files": "TRAIN", "val_files": "VAL"}  # the launcher's
RULES = "pkg://verl_ext.rewards"
MEDIA_KEYS = ("image_key", "video_key", "audio_key")
SINGLE_TURN_AGENTS = ("single_turn_agent", "seeded_single_turn")


def data_findings(run: Run) -> Iterator[Finding]:
    """Everything wrong with the files of both splits; ids are checked when the training files can be read."""
    found = {split: list(_split_findings(run, split)) for split in SWITCHES}
    yield from (finding for findings in found.values() for finding in findings)
    if not found["train_files"]:
        yield from _question_findings(run)


def column(path: str, name: str) -> Iterator:
    """Values of one column, read in batches."""
    for batch in pq.ParquetFile(path).iter_batches(columns=[name]):
        yield from batch.column(0).to_pylist()


def _split_findings(run: Run, split: str) -> Iterator[Finding]:
    if not run.files[split]:
        yield error(f"data.{split} is not set; name at least one parquet file.")
    for path in run.files[split]:
        try:
            yield from _file_findings(run, split, path)
        except ValueError as problem:
            yield error(f"data.{split}: {problem}.")


def _file_findings(run: Run, split: str, path: str) -> Iterator[Finding]:
    """What is wrong with a file; ValueError when it cannot be read."""
    key = f"data.{split}"
    if not Path(path).is_file():
        yield error(f"{key}: there is no file {path}; set {SWITCHES[split]} or {key} to one{_how_to_make(run)}.")
        return
    schema = read_schema(path)
    problems = list(_schema_problems(run, schema))
    if not problems:
        problems = list(_row_problems(path, graded=run.config.reward.custom_reward_function.path == RULES))
    yield from (error(f"{key}: {path}: {text}") for text in problems)
    if "agent_name" in schema.names:
        yield from _agent_findings(key, path)
    yield from _template_findings(run, key, path)


def _schema_problems(run: Run, schema: pa.Schema) -> Iterator[str]:
    """One sentence for each column that is missing, of another type, or not supported."""
    wrong = list(schema_problems(schema))
    yield from (f"{text}." for text in wrong)
    for name in filter(None, (run.config.data.get(key) for key in MEDIA_KEYS)):
        if name in schema.names:
            yield f"column {name!r} holds multimodal data; ExGRPO replays single-turn text only."
    if not wrong and "tools_kwargs" in fields_of(schema.field("extra_info").type):
        yield "extra_info.tools_kwargs asks for tools; ExGRPO replays single-turn text only."


def _row_problems(path: str, graded: bool) -> Iterator[str]:
    """One sentence for the first row without each value that is needed, or when there are no rows."""
    for text in missing_values(path, graded):
        yield f"{text}; remove it or make the file again (data/prepare_train.py)."
    if not pq.ParquetFile(path).metadata.num_rows:
        yield "there are no rows; make the file again (data/prepare_train.py)."


def _how_to_make(run: Run) -> str:
    return f", or make it (docs/reproduce.md has the command, template {run.template})" if run.template else ""


def _agent_findings(key: str, path: str) -> Iterator[Finding]:
    """verl lets a row choose its agent loop; one with tools or several turns cannot be replayed."""
    for row, name in enumerate(column(path, "agent_name")):
        if name is not None and name not in SINGLE_TURN_AGENTS:
            yield error(
                f"{key}: {path}: row {row} has agent_name {name!r}; ExGRPO replays single-turn text only, drop the column "
                f"or write {SINGLE_TURN_AGENTS[0]!r}."
            )
            return


def _template_findings(run: Run, key: str, path: str) -> Iterator[Finding]:
    wanted, made = run.template, (manifest_of(path) or {}).get("template")
    if wanted and made and wanted != made:
        yield error(
            f"{key}: {path} was made with template {made!r}, this run wants {wanted!r} (preset.template); make it again with "
            f"--template {wanted}, or set preset.template={made} if you mean it."
        )


def _question_findings(run: Run) -> Iterator[Finding]:
    infos = (info for path in run.files["train_files"] for info in column(path, "extra_info"))
    try:
        questions = len(index_questions(infos))
    except ValueError as problem:
        yield error(str(problem))
        return
    limit = run.config.data.get("train_max_samples", -1)
    questions = min(questions, limit) if limit and limit > 0 else questions
    if questions < run.questions:
        yield warning(
            f"data.train_batch_size is {run.questions} but data.train_files have {questions} questions; "
            "a question takes part once per step, so that steps will be smaller."
        )
