"""`exgrpo lab run | report | evidence`: studies of the algorithm on tiny models, on a CPU."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipe.exgrpo.lab.bases import GRADES, BaseRecipe
from recipe.exgrpo.lab.evidence import run_stages, write_document
from recipe.exgrpo.lab.families import FAMILIES
from recipe.exgrpo.lab.grid import Axes, Study, read_all, run_grid
from recipe.exgrpo.lab.report import write_report
from recipe.exgrpo.lab.suites import REFERENCE, SUITES, suite
from recipe.exgrpo.lab.tables import write_tables
from recipe.exgrpo.lab.trainer import LabSettings

logger = logging.getLogger(__name__)
FOLDER = Path("outputs/lab")
STUDY = Path("docs/evidence/tuned/study.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_run(actions.add_parser("run", help="run a grid of variants, bases and seeds; finished cells are kept"))
    report = actions.add_parser("report", help="Markdown and learning curves from a finished grid")
    report.add_argument("folder", type=Path, metavar="DIR", help="the folder that `run` wrote")
    report.add_argument(
        "--against", default=REFERENCE, metavar="VARIANT", help="reference of differences (%(default)s)"
    )
    report.add_argument("--json", action="store_true", help="print one JSON object")
    _add_evidence(
        actions.add_parser("evidence", help="a pre-registered study: make the missing runs, judge, write its document")
    )


def _add_evidence(evidence: argparse.ArgumentParser) -> None:
    evidence.add_argument(
        "study", type=Path, nargs="?", default=STUDY, metavar="YAML", help="stages and hypotheses (%(default)s)"
    )
    evidence.add_argument(
        "--document", type=Path, help="Markdown with the two marks (the study's folder with the suffix .md)"
    )
    evidence.add_argument("--run", dest="missing", action="store_true", help="make the missing runs first")
    evidence.add_argument("--stages", type=names, default=[], metavar="NAME,...", help="with --run: only these (all)")
    evidence.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each (%(default)s)"
    )
    evidence.add_argument("--out", type=Path, default=FOLDER / "evidence", help="folder of the cells (%(default)s)")
    evidence.add_argument(
        "--cache", type=Path, default=FOLDER / "bases", help="folder of the base models (%(default)s)"
    )
    evidence.add_argument("--json", action="store_true", help="print one JSON object")


def _add_run(run: argparse.ArgumentParser) -> None:
    settings, recipe = LabSettings(), BaseRecipe()
    run.add_argument(
        "--suite", required=True, metavar="NAME", help=f"{', '.join(SUITES)}; or variants; several by commas"
    )
    run.add_argument("--seeds", type=numbers, default=[0], metavar="0-4", help="seeds of the runs (0)")
    run.add_argument("--families", type=names, default=["chain"], help=f"{', '.join(FAMILIES)} (chain)")
    run.add_argument("--bases", type=names, default=["mid"], help=f"{', '.join(GRADES['chain'])} (mid)")
    run.add_argument("--base-seeds", type=numbers, default=[0], metavar="0-1", help="seeds of the base models (0)")
    run.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each (%(default)s)")
    run.add_argument("--out", type=Path, help=f"folder of the results ({FOLDER}/SUITE)")
    run.add_argument("--cache", type=Path, default=FOLDER / "bases", help="folder of the base models (%(default)s)")
    run.add_argument("--learning-rate", type=float, help="(default: the family's own)")
    for name in ("steps", "entropy_coeff", "eval_every", "heldout_questions"):
        value = getattr(settings, name)
        run.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    run.add_argument("--clean-steps", type=int, default=recipe.clean_steps, help="to train a base (%(default)s)")
    run.add_argument("--faulty-steps", type=int, default=recipe.faulty_steps, help="to train a base (%(default)s)")
    run.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Carry out one `lab`; returns the exit code."""
    console = Console(stderr=True)
    try:
        answer = {"run": run_study, "report": report_study, "evidence": gather_evidence}[args.action](args, console)
    except (ValueError, OSError) as error:
        console.print(f"[red]exgrpo lab:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    if args.json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        Console().print("\n".join(answer["written"]), soft_wrap=True)
    return 0


def run_study(args: argparse.Namespace, console: Console) -> dict:
    """Run the grid of the command line and write its tables."""
    shared = ("steps", "learning_rate", "entropy_coeff", "eval_every", "heldout_questions")
    settings = LabSettings(**{name: getattr(args, name) for name in shared})
    recipe = BaseRecipe(clean_steps=args.clean_steps, faulty_steps=args.faulty_steps)
    study = Study(settings, recipe, args.cache, args.out or FOLDER / args.suite.replace(",", "+"))
    cells = Axes(suite(args.suite), args.families, args.bases, args.base_seeds, args.seeds).cells()
    with progress_bars(args.jobs, console) as advance:
        run_grid(cells, study, args.jobs, advance)
    written = write_tables(read_all(study.out), study.out)
    return {"cells": len(cells), "written": [str(path) for path in written]}


@contextmanager
def progress_bars(jobs: int, console: Console) -> Iterator[Callable[[str, int], None]]:
    """Bars for `run_grid`, and one torch thread for what runs in this process; ValueError for fewer than one job."""
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {jobs}.")
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bars: dict[str, int] = {}

        def advance(stage: str, total: int) -> None:
            if stage in bars:
                progress.advance(bars[stage])
            elif total:
                bars[stage] = progress.add_task(stage, total=total)

        yield advance


def gather_evidence(args: argparse.Namespace, console: Console) -> dict:
    """Make the missing runs of a pre-registered study (with --run), and write its document."""
    document = args.document or args.study.parent.with_suffix(".md")
    if args.missing:
        with progress_bars(args.jobs, console) as advance:
            run_stages(args.study, args.stages, args.cache, args.out, args.jobs, advance)
    return {"verdicts": write_document(args.study, document), "written": [str(document)]}


def report_study(args: argparse.Namespace, console: Console) -> dict:
    """Write the report of a finished grid."""
    rows, written = write_report(args.folder, args.against)
    return {"rows": rows, "written": [str(path) for path in written]}


def numbers(text: str) -> list[int]:
    """Seeds as written on the command line: `0-4`, `1,3`, `0-2,7`."""
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds like 0-4 or 1,3")
        found |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return list(found)


def names(text: str) -> list[str]:
    """Names joined by commas, each once."""
    return list(dict.fromkeys(text.split(",")))
