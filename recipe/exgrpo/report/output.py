"""The report of training runs as Markdown and in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from recipe.exgrpo.report.costs import LAST
from recipe.exgrpo.report.groups import Group
from recipe.exgrpo.report.parts import Columns, cells, code, difference, level, markdown_table, number
from verl_ext.text import one_line

COLUMNS: Columns = {
    "variant": code("variant"),
    "runs": number("runs"),
    "steps": lambda row: "–".join(str(step) for step in dict.fromkeys((row["steps"][0], row["steps"][-1]))),
    "start": level("start"),
    "end": level("final"),
    "end difference": difference("final_difference"),
    "area": level("area"),
    "area difference": difference("area_difference"),
    "replayed": number("replayed_share", ".1%"),
    "fresh rollouts": number("fresh_rollouts", ",.0f"),
    "sequences updated": number("rows_updated", ",.0f"),
    "seconds per step": number("step_seconds", ".2f"),
    "gradient norm": number("grad_norm", ".3f"),
    "skipped updates": number("skipped_updates", ".1f"),
    "entropy at end": number("entropy", ".3f"),
}
RUNS: Columns = {
    "variant": code("variant"),
    "run": number("run"),
    "seed": number("seed"),
    "steps": number("steps"),
    "starts": number("starts"),
    "commit": number("commit"),
}
IN_TERMINAL = 8  # columns that fit its width


def markdown(rows: Sequence[dict], notes: Sequence[str], groups: Sequence[Group], reference: str) -> str:
    """Table, remarks and the list of runs."""
    parts = ["# Training runs", ""]
    parts += [
        f"Held-out pass rates. Differences are to `{reference}`, paired by seed, with 95 % t-intervals; bold ones exclude",
        "zero. The area is that under the learning curve, as its mean height. Replayed: share of the batch's questions, or,",
        "for refill, of its sequences. Seconds and gradient norms are medians over steps, the entropy is the mean of the last",
        f"{LAST} steps; all costs are means over runs.",
        "",
        *markdown_table(COLUMNS, rows),
        "",
        "![learning curves](curves.png)",
    ]
    parts += ["", "## Remarks", "", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*parts, "", "## Runs", "", *markdown_table(RUNS, _runs(groups)), ""])


def _runs(groups: Sequence[Group]) -> list[dict]:
    return [
        {"variant": group.name, "run": one_line(str(run.folder)), "steps": run.last_step}
        | {name: getattr(run, name) for name in ("seed", "starts", "commit")}
        for group in groups
        for run in group.runs
    ]


def show(console: Console, rows: Sequence[dict], notes: Sequence[str]) -> None:
    """The first columns of the table, and the remarks; the rest is in report.md."""
    table = Table(*(Column(name, overflow="fold") for name in list(COLUMNS)[:IN_TERMINAL]))
    for row in rows:
        table.add_row(*(Text(cell.strip("`*")) for cell in cells(COLUMNS, row)[:IN_TERMINAL]))
    console.print(table)
    for note in notes:
        console.print(Text(note), soft_wrap=True)
