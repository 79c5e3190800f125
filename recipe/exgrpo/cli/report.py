"""`exgrpo report RUN [RUN ...]`: curves and a table of training runs, from their `metrics.jsonl`.

RUN is a run's folder (`trainer.default_local_dir`). Runs of one variant that differ in their seed are put together by
`--group NAME=RUN,RUN,...`; a RUN outside a group is a line of its own. Writes report.md, report.json and curves.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from recipe.exgrpo.lab.files import write_atomically
from recipe.exgrpo.report.groups import Group, summarise
from recipe.exgrpo.report.output import figure, markdown, show
from recipe.exgrpo.report.remarks import remarks
from recipe.exgrpo.runs.metrics import read_run
from verl_ext.text import one_line

FILES = ("report.md", "report.json", "curves.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, a line of its own")
    parser.add_argument(
        "--group", action="append", type=group, default=[], metavar="NAME=RUN,RUN", help="runs of one variant, by seed"
    )
    parser.add_argument("--against", metavar="NAME", help="what the others are compared with (the first)")
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
    by_name = {group.name: group for group in groups}
    reference = by_name.get(against or groups[0].name)
    if reference is None:
        raise ValueError(f"--against {against}: there is no such line; there are {', '.join(by_name)}.")
    rows, notes = summarise(groups, reference), remarks(groups, reference)
    answer = {"against": reference.name, "rows": rows, "remarks": notes, "curves": _curves(groups)}
    described = json.dumps(answer, indent=2, ensure_ascii=False) + "\n"
    contents = (markdown(rows, notes, groups, reference).encode(), described.encode(), figure(groups))
    for name, content in zip(FILES, contents, strict=True):
        write_atomically(out / name, content)
    return answer


def _curves(groups: Sequence[Group]) -> dict[str, dict]:
    return {
        group.name: {
            "steps": group.curves.steps,
            "runs": [{"seed": seed, "pass_rate": rates} for seed, rates in group.curves.rates.items()],
        }
        for group in groups
        if group.curves
    }
