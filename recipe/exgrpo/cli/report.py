"""`exgrpo report RUN [RUN ...]`: curves and a table of training runs, from their `metrics.jsonl`.

RUN is a run's folder (`trainer.default_local_dir`). Runs of one variant with different seeds are put together by
`--group NAME=RUN,RUN,...`; a RUN outside a group is a line of its own. Writes report.md, report.json and curves.png.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from recipe.exgrpo.report.groups import Group, compare, summarise
from recipe.exgrpo.report.output import markdown, show
from recipe.exgrpo.report.parts import learning_curves
from recipe.exgrpo.report.remarks import remarks
from recipe.exgrpo.runs.metrics import read_run
from verl_ext.files import write_atomically
from verl_ext.text import one_line

FILES = ("report.md", "report.json", "curves.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, a line of its own")
    parser.add_argument(
        "--group",
        action="append",
        type=group,
        default=[],
        metavar="NAME=RUN,RUN",
        help="runs of one variant, with different seeds",
    )
    parser.add_argument("--against", metavar="NAME", help="the line that the others are compared with (the first)")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder to write to (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the content of report.json")


def group(text: str) -> tuple[str, list[Path]]:
    """`NAME=RUN,RUN` of the command line."""
    name, _, runs = text.partition("=")
    if not name or not all(runs.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RUN,RUN,...")
    return name, [Path(run) for run in runs.split(",")]


def run(args: argparse.Namespace) -> int:
    """Write the report; returns 1, after one sentence, when a run cannot be read."""
    try:
        groups = read_groups([*args.group, *((path.name or str(path), [path]) for path in args.runs)])
        answer = write_report(groups, args.against, args.out)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"[red]exgrpo report:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    if args.json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        console = Console()
        show(console, answer["rows"], answer["remarks"])
        console.print("\n".join(str(args.out / name) for name in FILES), soft_wrap=True, markup=False)
    return 0


def read_groups(named: Sequence[tuple[str, Sequence[Path]]]) -> list[Group]:
    """The runs of each line of the report. Raises ValueError without any, or when two lines have one name."""
    names = [one_line(name) for name, _ in named]
    if not names:
        raise ValueError("name at least one run, or a --group of them.")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two lines are called {twice[0]!r}; tell them apart by --group NAME=RUN.")
    return [Group(name, [read_run(path) for path in paths]) for name, (_, paths) in zip(names, named, strict=True)]


def write_report(groups: Sequence[Group], against: str | None, out: Path) -> dict:
    """Write the three files; returns what report.json holds.

    Raises ValueError when no group is called `against` (None: the first).
    """
    names = [group.name for group in groups]
    reference = against or names[0]
    if reference not in names:
        raise ValueError(f"--against {against}: there is no such line; there are {', '.join(names)}.")
    comparison = compare(groups)
    curves = {name: curve for name in names if (curve := comparison.curve((name,))) is not None}
    rows, notes = summarise(groups, comparison, reference), remarks(groups, comparison, reference)
    answer = {"against": reference, "rows": rows, "remarks": notes, "curves": _described(curves)}
    contents = (
        markdown(rows, notes, groups, reference).encode(),
        (json.dumps(answer, indent=2, ensure_ascii=False) + "\n").encode(),
        learning_curves({"": curves}, "held-out pass rate"),
    )
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(out / name, content)
    return answer


def _described(curves: Mapping[str, pd.DataFrame]) -> dict[str, dict]:
    """Curves as JSON has them."""
    return {
        name: {
            "steps": curve.index.tolist(),
            "runs": [{"seed": seed, "pass_rate": rates.tolist()} for seed, rates in curve.items()],
        }
        for name, curve in curves.items()
    }
