"""`exgrpo inspect PATH`: look into saved experience, with no GPU, no Ray and no model.

PATH is `global_step_N`, its `experience` folder, or a run's folder of checkpoints: then the one is taken that a start resumes
from, and newer ones are named, with what is missing. `--json` prints one JSON object instead of tables. The exit code is 1 when
the state is missing or damaged.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from recipe.exgrpo.checkpoint.errors import ExperienceStateError, MissingState
from recipe.exgrpo.checkpoint.format import folder_of
from recipe.exgrpo.checkpoint.stored import Stored, problems_of
from recipe.exgrpo.cli import inspect_output as output
from recipe.exgrpo.core.buffer import ExperienceBuffer, Trajectory, inspection
from recipe.exgrpo.experience import table
from recipe.exgrpo.experience.tokenizers import decoder, tokenizer_beside
from recipe.exgrpo.runs.folder import to_look_at

PASSED = 0.5  # a stored reward above it was a success


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, nargs="?", help="global_step_N, its experience folder, or a checkpoint root")
    parser.add_argument("--question", metavar="ID", help="show this question's trajectories")
    parser.add_argument("--verify", action="store_true", help="compare every checksum and relation")
    parser.add_argument("--diff", nargs=2, type=Path, metavar=("A", "B"), help="what changed from A to B")
    parser.add_argument("--regrade", action="store_true", help="grade again with today's reward; needs --data")
    parser.add_argument(
        "--apply",
        type=Path,
        metavar="FOLDER",
        help="with --regrade: a new state in FOLDER without what no longer passes",
    )
    parser.add_argument(
        "--run",
        nargs="+",
        default=[],
        dest="target",
        metavar="SCRIPT|key=value",
        help="whose reward --regrade takes (default: ours)",
    )
    parser.add_argument("--export", choices=("parquet", "jsonl"), help="write all trajectories (or --question's)")
    parser.add_argument("--plot", action="store_true", help="write histograms of buckets, ages and entropies as PNG")
    parser.add_argument("--data", type=Path, nargs="+", help="parquet files of the questions, for --regrade")
    parser.add_argument(
        "--tokenizer", help="folder of the tokenizer (default: actor/huggingface beside the experience)"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for --export and --plot (default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry out one `inspect`; returns the exit code."""
    console = Console(stderr=args.json)
    try:
        report, show, code = _report(args, console)
    except (ExperienceStateError, ValueError, OSError) as error:
        Console(stderr=True).print(f"[red]exgrpo inspect:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    for text in to_look_at(args.path)[1] if args.path else ():
        Console(stderr=True).print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(console, report)
    return code


def _report(args: argparse.Namespace, console: Console) -> tuple[dict, Callable, int]:
    """JSON-able answer, the function that shows it as tables, and the exit code."""
    if args.diff:
        a, b = (Stored.open(_resolve(path)).buffer(verify=False) for path in args.diff)
        return inspection.difference(a, b), output.show_difference, 0
    if args.path is None:
        raise ValueError("PATH is missing: give a checkpoint folder, or --diff A B.")
    path = _resolve(args.path)
    if args.verify:
        problems = [{"file": str(p.file), "reason": p.reason} for p in problems_of(path)]
        return {"path": str(path), "intact": not problems, "problems": problems}, output.show_problems, bool(problems)
    stored = Stored.open(path)
    buffer = stored.buffer(verify=False)
    if args.question is not None and args.question not in set(buffer.questions()):
        raise ValueError(f"question {args.question!r} is not in {path}.")
    if args.regrade:
        return _regrade(args, stored, buffer, console), output.show_regraded, 0
    if args.export or args.plot:
        return {"written": [str(file) for file in _write(args, stored, buffer, console)]}, output.show_written, 0
    if args.question is not None:
        return _question(args, stored, buffer), output.show_question, 0
    about = {"path": str(path), "fingerprint": stored.fingerprint, "checkpoint": _on_disk(stored)}
    return about | inspection.summary(buffer, _step_of(stored, buffer)), output.show_summary, 0


def _resolve(path: Path) -> Path:
    """The experience folder meant by `path`."""
    found = folder_of(path) or next(filter(None, map(folder_of, to_look_at(path)[0])), None)
    if found is None:
        raise MissingState(path, "there is no experience state here, nor in a global_step_N below.")
    return found


def _step_of(stored: Stored, buffer: ExperienceBuffer) -> int:
    return inspection.newest_step(buffer) if stored.step is None else stored.step


def _on_disk(stored: Stored) -> dict:
    return {
        "version": stored.manifest["version"],
        "files": len(stored.files),
        "bytes": sum(record.bytes for record in stored.files.values()),
        "dead_trajectories": stored.manifest["counts"]["dead_trajectories"],
    }


def _decoder(args: argparse.Namespace, stored: Stored) -> Callable[[list[int]], str] | None:
    """Text of token ids as the reward saw it (special tokens left out); None when no tokenizer is beside or named."""
    if args.tokenizer and not Path(args.tokenizer).is_dir():
        raise ValueError(f"--tokenizer {args.tokenizer} is not a folder.")
    path = args.tokenizer or tokenizer_beside(stored.folder)
    return None if path is None else decoder(path)


def _chosen(args: argparse.Namespace, buffer: ExperienceBuffer, doing: str, console: Console) -> Iterator[Trajectory]:
    """All trajectories, or those of --question, behind a progress bar."""
    questions = list(buffer.questions()) if args.question is None else [args.question]
    total = sum(len(buffer.rows(question)) for question in questions)
    found = inspection.trajectories(buffer, questions)
    return iter(track(found, doing, total=total, console=console, transient=True))


def _question(args: argparse.Namespace, stored: Stored, buffer: ExperienceBuffer) -> dict:
    decode = _decoder(args, stored)
    found = inspection.trajectories(buffer, [args.question])
    return {
        "question": args.question,
        "latest_count": buffer.latest_count(args.question),
        "retired": buffer.is_retired(args.question),
        "decoded": decode is not None,
        "trajectories": [inspection.record(buffer, trajectory, decode) for trajectory in found],
    }


def _regrade(args: argparse.Namespace, stored: Stored, buffer: ExperienceBuffer, console: Console) -> dict:
    """Grade again; lists what was stored as a success and is none today."""
    if args.apply is not None and (args.apply.exists() or args.question is not None):
        raise ValueError(f"--apply {args.apply}: name a folder that is not there yet, and no --question.")
    decode = _decoder(args, stored)
    if not args.data or decode is None:
        needed = (
            "--data, the parquet files of the questions" if decode else "--tokenizer: none is beside the experience"
        )
        raise ValueError(f"--regrade needs {needed}.")
    from verl_ext.dataset import rows_by_question

    rows = rows_by_question(args.data)
    found = _chosen(args, buffer, "grading", console)
    results = list(inspection.regrade(found, rows, decode, _reward(args.target)))
    known = [result for result in results if result is not None]
    failing = [vars(r) for r in known if r.trouble is None and r.stored > PASSED >= r.now]
    report = {
        "graded": len(known),
        "not_in_data": len(results) - len(known),
        "timeout_or_error": sum(r.trouble is not None for r in known),
        "no_longer_pass": failing,
    }
    return report if args.apply is None else report | _applied(args.apply, stored, buffer, failing, decode)


def _reward(target: list[str]) -> Callable[..., dict]:
    """The reward of a run, or the shipped one."""
    from verl_ext.rewards import compute_score

    if not target:
        return compute_score
    from recipe.exgrpo.experience.grading import Grading
    from recipe.exgrpo.presets.compose import compose, resolve_target

    return Grading.of(compose(resolve_target(target)).reward, workers=1).call


def _applied(out: Path, stored: Stored, buffer: ExperienceBuffer, failing: list[dict], decode: Callable) -> dict:
    """Write what is left as a new state, and beside it what went out, with its text, for someone to look at."""
    from recipe.exgrpo.experience import state

    handles = [found["row"] for found in failing]
    gone = list(table.rows_of(buffer, handles, decode, stored.fingerprint.get("tokenizer")))
    buffer.drop_trajectories(handles)
    written = state.write(out, buffer, stored.fingerprint, stored.extra, tokenizer_beside(stored.folder))
    table.write_jsonl(out / "taken_out.jsonl", iter(gone))
    return {"applied": str(written), "left": len(buffer.candidates())}


def _write(args: argparse.Namespace, stored: Stored, buffer: ExperienceBuffer, console: Console) -> list[Path]:
    args.out.mkdir(parents=True, exist_ok=True)
    step = _step_of(stored, buffer)
    written = []
    if args.export:
        decode = _decoder(args, stored)
        found = _chosen(args, buffer, "exporting", console)
        handles = (trajectory.row for trajectory in found)
        records = table.rows_of(buffer, handles, decode, stored.fingerprint.get("tokenizer"))
        written.append(args.out / f"experience_step_{step}.{args.export}")
        if args.export == "parquet":
            table.write_parquet(written[-1], records, table.schema(decoded=decode is not None))
        else:
            table.write_jsonl(written[-1], records)
    if args.plot:
        written.append(args.out / f"experience_step_{step}.png")
        output.plot(written[-1], inspection.summary(buffer, step), inspection.columns(buffer, step))
    return written
