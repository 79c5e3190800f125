"""Checks of the data files: columns, rows, question ids, agent names, prompt template; and whether they can be joined."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from recipe.exgrpo.checks.findings import Finding, error
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.tools import agent_loops
from verl_ext.data_files import DataFile, differences, loaded_schema, open_file
from verl_ext.data_problems import SAMPLES, file_problems, verl_problems
from verl_ext.dataset import index_questions, manifest_of

SWITCHES = {"train_files": "TRAIN", "val_files": "VAL"}  # the launcher's
RULES = "pkg://verl_ext.rewards"
MEDIA_KEYS = ("image_key", "video_key", "audio_key")
AGENT = "agent_name"


def data_findings(run: Run) -> Iterator[Finding]:
    """Everything wrong with the files of both splits; ids are checked when the training files can be read."""
    found = {split: list(_split_findings(run, split)) for split in SWITCHES}
    yield from (finding for findings in found.values() for finding in findings)
    if not found["train_files"]:
        yield from _question_findings(run)


def column(path: str, name: str) -> Iterator:
    """Values of one column, read in batches."""
    for batch in open_file(path).batches([name]):
        yield from batch.column(0).to_pylist()


def _split_findings(run: Run, split: str) -> Iterator[Finding]:
    if not run.files[split]:
        yield error(f"data.{split} is not set; name at least one parquet file.")
    schemas = []
    for path in run.files[split]:
        try:
            found = list(_file_findings(run, split, path))
        except ValueError as problem:
            found = [error(f"data.{split}: {problem}.")]
        yield from found
        if not found:
            schemas.append((path, open_file(path).schema))
    yield from (error(f"data.{split}: {text}.") for text in _joining_problems(schemas))


def _file_findings(run: Run, split: str, path: str) -> Iterator[Finding]:
    """What is wrong with a file; ValueError when it cannot be read."""
    key = f"data.{split}"
    if not Path(path).is_file():
        yield error(f"{key}: there is no file {path}; set {SWITCHES[split]} or {key} to one{_how_to_make(run)}.")
        return
    file = open_file(path)
    yield from (error(f"{key}: {path}: {text}.") for text in _file_problems(run, split, file))
    if AGENT in file.schema.names:
        yield from _agent_findings(run, key, path)
    yield from _template_findings(run, key, path)


def _file_problems(run: Run, split: str, file: DataFile) -> Iterator[str]:
    """One clause for each column, or else for the first row of each kind, that a run cannot work with."""
    problems = list(_our_problems(run, split, file.schema))
    problems += file_problems(file, graded=run.config.reward.custom_reward_function.path == RULES)
    for text in problems or verl_problems(file):
        yield f"{text}; remove it or make the file again (data/prepare_train.py)" if text.startswith("row ") else text
    if not file.rows:
        yield "there are no rows; make the file again (data/prepare_train.py)"


def _our_problems(run: Run, split: str, schema: pa.Schema) -> Iterator[str]:
    """Columns that verl would take for what ExGRPO does not do."""
    for name in filter(None, (run.config.data.get(key) for key in MEDIA_KEYS)):
        if name in schema.names:
            yield f"column {name!r} holds multimodal data; ExGRPO replays text only"
    if split == "train_files" and SAMPLES in schema.names:
        yield f"column {SAMPLES!r} is for validation; in training actor_rollout_ref.rollout.n and the plan say how many"


def _joining_problems(schemas: list[tuple[str, pa.Schema]]) -> Iterator[str]:
    """Clauses about files that are sound one by one: rows of a file without a column have nothing there."""
    loaded = [(path, loaded_schema(schema)[0]) for path, schema in schemas]
    for text in differences(loaded):
        yield f"{text}: verl's loader cannot join them, make them of one type"
    for name in (SAMPLES, AGENT):
        files = {has: [path for path, schema in loaded if (name in schema.names) == has] for has in (True, False)}
        if all(files.values()):
            yield f"column {name!r} is in {files[True][0]} and not in {files[False][0]}: write it into all, or drop it"


def _how_to_make(run: Run) -> str:
    return f", or make it (docs/reproduce.md has the command, template {run.template})" if run.template else ""


def _agent_findings(run: Run, key: str, path: str) -> Iterator[Finding]:
    """verl lets a row choose its agent loop, and stops in the middle of a step at a name that it does not know."""
    known = agent_loops(run)
    for row, name in enumerate(column(path, AGENT)):
        if name not in known:
            yield error(
                f"{key}: {path}: row {row} has {AGENT} {name!r}, and the agent loops of this run are {', '.join(known)}; drop "
                "the column, or name the loop's file in actor_rollout_ref.rollout.agent.agent_loop_config_path."
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
        yield error(
            f"data.train_batch_size is {run.questions} but data.train_files have {questions} questions to take"
            f"{f' (data.train_max_samples={limit})' if questions == limit else ''}; a question takes part once per step: "
            "lower data.train_batch_size and actor_rollout_ref.actor.ppo_mini_batch_size, or add questions."
        )
