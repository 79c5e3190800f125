"""Results as tables: Markdown and PNG, the same bytes for the same results, and for the terminal. Figures in percent."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from recipe.exgrpo.presets.paper_results import paper_results
from verl_ext.files import replacing
from verl_ext.text import one_line

NONE = "-"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~!])")
CHARACTER_INCHES, ROW_INCHES = 0.085, 0.3


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned, the others right-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def result_tables(results: dict[str, Any]) -> list[Table]:
    """Ours beside the paper's, then all figures of ours, then the other grader where it was asked for."""
    tables = [_comparison(results), _details(results)]
    return [*tables, _graders(results)] if "oat_like" in results else tables


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


def write_png(tables: Sequence[Table], path: Path) -> None:
    """All tables under each other as one picture. The bytes depend on the tables and matplotlib's version only."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [_column_widths(table) for table in tables]
    heights = [len(table.rows) + 2.5 for table in tables]
    with matplotlib.rc_context(matplotlib.rcParamsDefault | {"text.parse_math": False, "svg.hashsalt": "exgrpo"}):
        size = (CHARACTER_INCHES * max(map(sum, widths)) + 0.4, ROW_INCHES * sum(heights))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, table, width in zip(axes, tables, widths, strict=True):
            ax.axis("off")
            ax.set_title(one_line(table.title), loc="left", fontsize=10)
            _draw(ax, table, [w / max(map(sum, widths)) for w in width])
        with replacing(path) as new:
            FigureCanvasAgg(figure).print_png(str(new), metadata={"Software": None})


def percent(fraction: float | None) -> str:
    return NONE if fraction is None else f"{100 * fraction:.1f}"


def _comparison(results: dict[str, Any]) -> Table:
    """Rows of methods, columns of benchmarks, and the average of each group of which all benchmarks are there."""
    paper, ours = paper_results(), results["benchmarks"]
    groups = [group for group, names in paper["groups"].items() if set(names) <= ours.keys()]
    header = ["", *(_title(name, figures) for name, figures in ours.items()), *(f"average {g}" for g in groups)]
    mine = [percent(figures["mean"]) for figures in ours.values()]
    mine += [percent(results["averages"][group]) for group in groups]
    rows = [(f"ours: {results['model']['name']}", *mine)]
    backbone = paper["backbones"].get(results["backbone"])
    for row in backbone["rows"] if backbone else ():
        theirs = [row["scores"].get(name) for name in ours] + [row["averages"][group] for group in groups]
        cells = (NONE if value is None else f"{value:.1f}" for value in theirs)
        rows.append((f"paper: {backbone['title']}, {row['method']}", *cells))
    return Table("Accuracy, %", tuple(header), tuple(rows))


def _title(name: str, figures: dict[str, Any]) -> str:
    title, asked, available = paper_results()["titles"].get(name, name), figures["questions"], figures["available"]
    return title if asked == available else f"{title} ({asked} of {available})"


def _details(results: dict[str, Any]) -> Table:
    """One row for each of our benchmarks."""
    header = ("benchmark", "questions", "samples", "mean, %", "s.e. questions", "s.e. samples", "pass@k, %")
    header += ("tokens, mean", "truncated, %", "format kept, %")
    rows = []
    for name, figures in results["benchmarks"].items():
        asked, available = figures["questions"], figures["available"]
        best = max(map(int, figures["pass_at"]))
        rows.append((
            paper_results()["titles"].get(name, name),
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


def _graders(results: dict[str, Any]) -> Table:
    header = ("benchmark", "training reward, %", "oat-like, %", "only training", "only oat-like")
    rows = tuple(
        (
            paper_results()["titles"].get(name, name),
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


def _column_widths(table: Table) -> list[int]:
    """Characters of the widest cell of every column, with a margin."""
    return [max(map(len, column)) + 2 for column in zip(table.header, *table.rows, strict=True)]


def _draw(ax: Any, table: Table, widths: Sequence[float]) -> None:
    cells = [[one_line(cell) for cell in row] for row in (table.header, *table.rows)]
    drawn = ax.table(cellText=cells, colWidths=widths, loc="upper left", cellLoc="right", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_text_props(weight="bold" if row == 0 else "normal", ha="right" if column else "left")
