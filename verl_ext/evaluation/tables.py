"""Results as tables: Markdown, the same bytes for the same results, and for the terminal. Figures in percent."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from verl_ext.evaluation.published import Published
from verl_ext.text import one_line

NONE = "-"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~!])")


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def result_tables(results: dict[str, Any], published: Published) -> list[Table]:
    """Ours beside the published ones, then all figures of ours, then the other grader where it was asked for."""
    tables = [_comparison(results, published), _details(results, published)]
    return [*tables, _graders(results, published)] if "oat_like" in results else tables


def markdown(tables: Sequence[Table]) -> str:
    """All tables, special characters escaped: a model's name can hold anything."""
    return "\n".join(_markdown_table(table) for table in tables)


def for_terminal(table: Table) -> RichTable:
    """The table for a rich console; nothing in it is taken for markup or sent as a control character."""
    shown = RichTable(title=Text(one_line(table.title)))
    for i, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(one_line(cell)) for cell in row))
    return shown


def percent(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.1f}"


def _comparison(results: dict[str, Any], published: Published) -> Table:
    """Rows of methods, columns of benchmarks, and the average of each group of which all benchmarks are there."""
    ours = results["benchmarks"]
    groups = published.complete_groups(ours)
    header = ["", *(_title(published.title(name), figures) for name, figures in ours.items())]
    header += [f"average {group}" for group in groups]
    mine = [percent(figures["mean"]) for figures in ours.values()]
    mine += [percent(results["averages"][group]) for group in groups]
    rows = [(f"ours: {results['model']['name']}", *mine)]
    backbone = published.backbones.get(results["backbone"])
    for row in backbone.rows if backbone else ():
        theirs = [row.scores.get(name) for name in ours] + [row.averages[group] for group in groups]
        cells = (NONE if value is None else f"{value:.1f}" for value in theirs)
        rows.append((f"paper: {backbone.title}, {row.method}", *cells))
    return Table("Accuracy, %", tuple(header), tuple(rows))


def _title(title: str, figures: dict[str, Any]) -> str:
    asked, available = figures["questions"], figures["available"]
    return title if asked == available else f"{title} ({asked} of {available})"


def _details(results: dict[str, Any], published: Published) -> Table:
    """One row for each of our benchmarks."""
    header = ("benchmark", "questions", "samples", "mean, %", "s.e. questions", "s.e. samples", "pass@k, %")
    header += ("tokens, mean", "truncated, %", "format kept, %")
    rows = []
    for name, figures in results["benchmarks"].items():
        asked, available = figures["questions"], figures["available"]
        best = max(map(int, figures["pass_at"]))
        rows.append((
            published.title(name),
            f"{asked}" if asked == available else f"{asked} of {available}",
            f"{figures['samples']}",
            percent(figures["mean"]),
            percent(figures["stderr_questions"]),
            percent(figures["stderr_samples"]),
            f"{percent(figures['pass_at'][str(best)])} (k = {best})",
            f"{figures['tokens_mean']:.0f}",
            percent(figures["truncated"]),
            percent(figures["format_kept"]),
        ))  # fmt: skip
    return Table("Ours: mean over questions, standard errors in points", header, tuple(rows))


def _graders(results: dict[str, Any], published: Published) -> Table:
    header = ("benchmark", "training reward, %", "oat-like, %", "only training", "only oat-like")
    rows = tuple(
        (
            published.title(name),
            percent(results["benchmarks"][name]["mean"]),
            percent(other["mean"]),
            str(other["only_training"]),
            str(other["only_oat_like"]),
        )
        for name, other in results["oat_like"].items()
    )
    return Table(
        "The training reward beside a grader that extracts as the paper did; responses only one accepts", header, rows
    )


def _markdown_table(table: Table) -> str:
    align = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [table.header, align, *table.rows]
    body = [_MARKDOWN.sub(r"\\\1", one_line(cell)) if line is not align else cell for line in lines for cell in line]
    width = len(table.header)
    rows = ["| " + " | ".join(body[i : i + width]) + " |" for i in range(0, len(body), width)]
    return f"**{table.title}**\n\n" + "\n".join(rows) + "\n"
