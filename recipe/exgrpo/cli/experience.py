"""`exgrpo experience import | export`: traces from elsewhere as a state that runs start from, and states as files for others.

    exgrpo experience import traces.jsonl --into outputs/traces --run scripts/qwen2.5-math-7b_exgrpo.sh
    exgrpo experience export outputs/toy/global_step_60 --as sft --data outputs/toy_data/train.parquet --out sft.parquet

The run (a script, hydra overrides, or both) says which questions, tokenizer, chat template, reward and lengths count. Exit
code 2 and one sentence for what cannot be read; nothing is then written. docs/experience.md explains both.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recipe.exgrpo.checkpoint.errors import ExperienceStateError
from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.cli import experience_output as output
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.inspection import newest_step
from recipe.exgrpo.core.config import ExperienceConfig
from recipe.exgrpo.experience import export, state, table
from recipe.exgrpo.experience.importing import Importer, Score
from recipe.exgrpo.experience.sources import IMPORTED, Source
from recipe.exgrpo.experience.target import Target, run_fingerprint
from recipe.exgrpo.experience.tokenizers import decoder, tokenizer_beside
from recipe.exgrpo.experience.traces import Columns
from recipe.exgrpo.presets.compose import ROOT, compose, names_script, resolve_target
from verl_ext.dataset import rows_by_question

REFUSED = 2
FORMS = ("trajectories", "sft", "preferences")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_import(
        actions.add_parser("import", help="traces (parquet, JSON lines, saved states) into a state of their own")
    )
    _add_export(actions.add_parser("export", help="a state as trajectories, SFT messages or preference pairs"))


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".parquet, .jsonl, or a saved state")
    parser.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="STATE",
        help="folder of the state (it may hold some); or a .parquet",
    )
    parser.add_argument(
        "--run", nargs="+", default=[], dest="target", metavar="SCRIPT|key=value", help="the run that they are for"
    )
    parser.add_argument("--data", type=Path, nargs="+", help="the questions: data.train_files of the run")
    parser.add_argument("--model", help="the start policy: actor_rollout_ref.model.path of the run")
    parser.add_argument("--tokenizer", help="actor_rollout_ref.model.tokenizer_path of the run")
    parser.add_argument(
        "--source", metavar="NAME", help="tag of these traces (default: their own, else the file's name)"
    )
    parser.add_argument("--prompt-key", help="column of the prompt (default: prompt, problem or question)")
    parser.add_argument("--response-key", help="column of the response (default: response, target, text, ... answer)")
    parser.add_argument("--question-key", help="column of the question id (default: question_id or question)")
    parser.add_argument("--importance", choices=("scored", "none"), help="for log-probs that are missing (the run's)")
    parser.add_argument("--overlong", choices=("refuse", "cut"), help="what is longer than the run's limit (the run's)")
    parser.add_argument("--keep-failures", action="store_true", help="store what the reward refuses, too")
    parser.add_argument("--skip-bad", action="store_true", help="count rows that cannot be read instead of stopping")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the start policy")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="STATE", help="global_step_N, or what `import` wrote")
    parser.add_argument("--as", dest="form", choices=FORMS, default=FORMS[0], help="what a row is (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".parquet or .jsonl")
    parser.add_argument("--data", type=Path, nargs="+", help="parquet of the questions, for sft and preferences")
    parser.add_argument("--tokenizer", help="folder of the tokenizer (default: the one beside the state)")
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME", help="only of this source (repeatable)"
    )
    for name, what in (
        ("successes", "of its group, k of K"), ("age", "in steps"), ("length", "of the response in tokens"),
        ("entropy", "when last scored, nats"), ("reward", "as stored"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=bounds, default=export.Bounds(), metavar="LOW:HIGH", help=what)
    parser.add_argument("--pairs", type=int, default=1, metavar="N", help="preferences: at most N of a question (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def bounds(text: str) -> export.Bounds:
    """`LOW:HIGH` of the command line."""
    try:
        return export.Bounds.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Carry out an action; returns 2, after one sentence, for what cannot be read."""
    console = Console(stderr=True)
    try:
        report, show = (_import if args.action == "import" else _export)(args, console)
    except (ExperienceStateError, ValueError, OSError) as error:
        console.print(f"[red]exgrpo experience {args.action}:[/] {escape(str(error))}", soft_wrap=True)
        return REFUSED
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(Console(), report)
    return 0


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Bars with counts and time, gone when they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield bars


# ---- import


def _import(args: argparse.Namespace, console: Console) -> tuple[dict, Any]:
    columns = Columns(args.question_key, args.prompt_key, args.response_key)
    sources = [Source(path.resolve(), columns) for path in args.files]
    into, (config, settings) = args.into.resolve(), _configured(args)
    # A script runs in the root of the repository, and its paths are relative to that.
    with contextlib.chdir(ROOT) if names_script(args.target) else contextlib.nullcontext():
        report = _imported(args, config, settings, sources, into, console)
    return {"into": str(args.into)} | report, output.show_import


def _imported(
    args: argparse.Namespace,
    config: DictConfig,
    settings: ExperienceConfig,
    sources: list[Source],
    into: Path,
    console: Console,
) -> dict:
    """Import all sources and write `into`, a state or a parquet file; the report."""
    target = Target.of(config)
    fingerprint = dict(run_fingerprint(config, target, IMPORTED))
    size = fingerprint["group_size"]
    if into.suffix == ".parquet":
        buffer = ExperienceBuffer(size)
        report = _read(args, config, target, buffer, settings, sources, console)
        _write_table(into, buffer, target)
        return report
    buffer, extra = state.opened(into, fingerprint, size)
    report = _read(args, config, target, buffer, settings, sources, console)
    imports = [*extra.get("imports", []), report | {"files": [str(source.path) for source in sources]}]
    state.write(into, buffer, fingerprint, extra | {"imports": imports}, target.renderer.tokenizer)
    return report


def _configured(args: argparse.Namespace) -> tuple[DictConfig, ExperienceConfig]:
    """The run's configuration, and its import settings with those of the command line."""
    named = {"data.train_files": args.data and f"[{','.join(_quoted(path.resolve()) for path in args.data)}]"}
    named["actor_rollout_ref.model.path"] = args.model and _quoted(args.model)
    named["actor_rollout_ref.model.tokenizer_path"] = args.tokenizer and _quoted(args.tokenizer)
    config = compose([*resolve_target(args.target), *(f"{key}={value}" for key, value in named.items() if value)])
    found = config.exgrpo.experience
    settings = ExperienceConfig(
        importance=args.importance or found.importance,
        overlong=args.overlong or found.overlong,
        keep_failures=args.keep_failures or found.keep_failures,
        skip_bad=args.skip_bad or found.skip_bad,
    )
    return config, settings


def _quoted(text: object) -> str:
    return "'" + str(text).replace("'", r"\'") + "'"


def _read(args, config, target: Target, buffer: ExperienceBuffer, settings, sources, console: Console) -> dict:
    """Import all sources behind a progress bar; the report."""
    with progress(console) as bars:
        score = _scorer(args, config, target, bars) if settings.importance == "scored" else None
        importer = Importer(target, buffer, settings, score)
        for source in sources:
            task = bars.add_task(f"importing {escape(source.path.name)}", total=source.count())
            importer.read(source, args.source, lambda n, task=task: bars.advance(task, n))
    return importer.report.as_dict()


def _scorer(args: argparse.Namespace, config: DictConfig, target: Target, bars: Progress) -> Score:
    """Loads the model when the first trace without log-probs asks for it."""
    loaded: list[Score] = []
    task = bars.add_task("scoring", total=None, visible=False)

    def score(pairs):
        from recipe.exgrpo.experience.scoring import ModelScorer, with_progress

        bars.update(task, visible=True)
        if not loaded:
            model = str(config.actor_rollout_ref.model.path)
            found = ModelScorer.load(model, target.temperature, args.dtype)
            loaded.append(with_progress(found, lambda n: bars.advance(task, n)))
        return loaded[0](pairs)

    return score


def _write_table(path: Path, buffer: ExperienceBuffer, target: Target) -> None:
    decode = lambda ids: target.renderer.tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
    rows = table.rows_of(buffer, buffer.candidates().row.tolist(), decode, target.tokenizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_parquet(path, rows, table.schema(decoded=True))


# ---- export


def _export(args: argparse.Namespace, console: Console) -> tuple[dict, Any]:
    if args.out.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"--out {args.out}: name a .parquet or .jsonl file.")
    stored = Stored.open(args.path)
    buffer = stored.buffer()
    step = newest_step(buffer) if stored.step is None else stored.step
    filters = export.Filters(args.source, args.successes, args.age, args.length, args.entropy, args.reward)
    chosen = filters.chosen(buffer, step)
    rows, columns = _rows(args, stored, buffer, chosen)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with progress(console) as bars:
        task = bars.add_task("writing", total=None if args.form == "preferences" else len(chosen))
        written = _written(args.out, bars, task, rows, columns)
    answer = {"written": str(args.out), "form": args.form, "rows": written, "trajectories": len(chosen)}
    return answer, output.show_export


def _written(path: Path, bars: Progress, task, rows: Iterator[dict], columns) -> int:
    counted = (row for row in rows if bars.advance(task) is None)
    return (
        table.write_parquet(path, counted, columns) if path.suffix == ".parquet" else table.write_jsonl(path, counted)
    )


def _rows(args: argparse.Namespace, stored: Stored, buffer: ExperienceBuffer, chosen) -> tuple[Iterator[dict], Any]:
    """Rows of the form asked for, and their columns."""
    beside = args.tokenizer or tokenizer_beside(stored.folder)
    decode = decoder(beside) if beside else None
    if args.form == "trajectories":
        rows = table.rows_of(buffer, chosen.row.tolist(), decode, stored.fingerprint.get("tokenizer"))
        return rows, table.schema(decode is not None)
    if decode is None or not args.data:
        needed = "--data, the parquet files of the questions" if decode else "--tokenizer: none is beside the state"
        raise ValueError(f"--as {args.form} needs {needed}.")
    prompts = {question: list(row["prompt"]) for question, row in rows_by_question(args.data).items()}
    if args.form == "sft":
        return export.sft_rows(buffer, chosen, prompts, decode), export.sft_schema()
    return export.preference_rows(buffer, chosen, prompts, decode, args.pairs), export.preference_schema()
