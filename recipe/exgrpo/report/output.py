"""The report of runs as Markdown and as a figure, the same bytes from the same runs."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from recipe.exgrpo.report.costs import LAST
from recipe.exgrpo.report.groups import Group
from recipe.exgrpo.report.parts import draw_curve, finish_panel, png, shown, table_lines
from verl_ext.text import one_line

HEADER = (
    "variant", "runs", "steps", "start", "end", "end difference", "area", "area difference",
    "replayed", "fresh rollouts", "seconds a step", "gradient norm", "skipped updates", "entropy at end",
)  # fmt: skip
IN_TERMINAL = 8  # columns that fit its width


def markdown(rows: Sequence[dict], notes: Sequence[str], groups: Sequence[Group], reference: Group) -> str:
    """Table, remarks and the list of runs."""
    parts = ["# Training runs", ""]
    parts += [
        f"Held-out pass rates. Differences are to `{reference.name}`, paired by seed, with 95 % t-intervals; bold ones exclude",
        "zero. The area is that under the learning curve, as its mean height. Replayed: share of the batch's questions, or, in",
        "mode fill, of its sequences. Seconds and gradient norms are medians over steps, the entropy is the mean of the last",
        f"{LAST} steps; all costs are means over runs.",
        "",
        *table_lines(HEADER, map(_cells, rows)),
        "",
        "![learning curves](curves.png)",
    ]
    parts += ["", "## Remarks", "", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*parts, "", "## Runs", "", *_runs(groups), ""])


def _cells(row: dict) -> list[str]:
    return [
        f"`{row['variant']}`",
        str(row["runs"]),
        "–".join(str(step) for step in dict.fromkeys((row["steps"][0], row["steps"][-1]))),
        shown(row, "start"),
        shown(row, "final"),
        shown(row, "final_difference", signed=True),
        shown(row, "area"),
        shown(row, "area_difference", signed=True),
        _number(row["replayed_share"], ".1%"),
        _number(row["fresh_rollouts"], ",.0f"),
        _number(row["step_seconds"], ".2f"),
        _number(row["grad_norm"], ".3f"),
        _number(row["skipped_updates"], ".1f"),
        _number(row["entropy"], ".3f"),
    ]


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _runs(groups: Sequence[Group]) -> list[str]:
    rows = (
        [
            f"`{group.name}`",
            one_line(str(run.folder)),
            *map(_or_dash, (run.seed, run.last_step, run.starts, run.commit)),
        ]
        for group in groups
        for run in group.runs
    )
    return table_lines(("variant", "run", "seed", "steps", "starts", "commit"), rows)


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def figure(groups: Sequence[Group]) -> bytes:
    """Held-out curves as PNG: the mean of a variant's runs, and its 95 % t-interval as a band."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.4), layout="constrained")
    panel = drawing.subplots()
    for group in groups:
        if group.curves:
            draw_curve(panel, group.name, group.curves.steps, group.curves.rates.values())
    finish_panel(panel, "", "step", "held-out pass rate")
    return png(drawing)


def show(console: Console, rows: Sequence[dict], notes: Sequence[str]) -> None:
    """The first columns of the table, and the remarks; the rest is in report.md."""
    table = Table(*(Column(name, overflow="fold") for name in HEADER[:IN_TERMINAL]))
    for row in rows:
        table.add_row(*(Text(cell.strip("`*")) for cell in _cells(row)[:IN_TERMINAL]))
    console.print(table)
    for note in notes:
        console.print(Text(note), soft_wrap=True)
