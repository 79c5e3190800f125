"""What reports have in common: Markdown tables of rows with means and intervals, and a figure of learning curves with bands."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recipe.exgrpo.report.stats import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = Mapping[str, Callable[[dict], str]]  # header -> the cell of a row

BANDS = 8  # variants in a figure that still have bands; those of more would hide the curves


def markdown_table(columns: Columns, rows: Iterable[dict]) -> list[str]:
    """Lines of a Markdown table."""
    return [_line(columns), _line(["---"] * len(columns)), *(_line(cells(columns, row)) for row in rows)]


def cells(columns: Columns, row: dict) -> list[str]:
    """The cells of one row."""
    return [cell(row) for cell in columns.values()]


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def code(name: str) -> Callable[[dict], str]:
    """A column of names, as code."""
    return lambda row: f"`{row[name]}`"


def number(name: str, form: str = "") -> Callable[[dict], str]:
    """A column of plain values in the format `form`, a dash where there is none."""
    return lambda row: "–" if row[name] is None else format(row[name], form)


def level(name: str) -> Callable[[dict], str]:
    """A column of means with half widths (`name` and `name_half`)."""
    return lambda row: _mean(row, name, ".3f")


def difference(name: str) -> Callable[[dict], str]:
    """The same with its sign, bold where the interval excludes zero."""

    def cell(row: dict) -> str:
        text, half = _mean(row, name, "+.3f"), row[f"{name}_half"]
        return f"**{text}**" if half is not None and abs(row[name]) > half else text

    return cell


def _mean(row: dict, name: str, form: str) -> str:
    mean, half = row[name], row[f"{name}_half"]
    if mean is None:
        return "–"
    return format(mean, form) + ("" if half is None else f" ± {half:.3f}")


def learning_curves(panels: Mapping[str, Mapping[str, pd.DataFrame]], label: str) -> bytes:
    """Learning curves as PNG, the same bytes for the same curves; see `draw_curves`."""
    content = io.BytesIO()
    draw_curves(panels, label).savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def draw_curves(panels: Mapping[str, Mapping[str, pd.DataFrame]], label: str) -> "Figure":
    """The mean of the runs as a line, and its 95 % t-interval as a band; one panel per title.

    A variant has one colour in all panels, and one entry in the legend below them.

    Args:
        panels: title -> variant -> pass rates, float [steps, runs], without NaN.
        label: of the y-axis.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"].colors
    looks = {name: (colours[i % len(colours)], ("-", "--")[i // len(colours) % 2]) for i, name in enumerate(names)}
    width = max(5.5 * len(panels), 8)
    columns = int(width / (0.08 * max(map(len, names), default=0) + 0.6))  # inches of an entry: letters, line and gap
    drawing = Figure(figsize=(width, 4.2 + 0.25 * -(-len(names) // columns)), layout="constrained")
    entries = {}
    for panel, (title, curves) in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, rates in curves.items():
            _draw_curve(panel, name, rates, looks[name], len(names) <= BANDS)
        entries |= {line.get_label(): line for line in panel.lines}
        panel.set(title=title, xlabel="step", ylabel=label)
        panel.grid(alpha=0.3)
    if names:
        drawing.legend(handles=[entries[name] for name in names], loc="outside lower center", ncols=columns)
    return drawing


def _draw_curve(panel: "Axes", name: str, curves: pd.DataFrame, look: tuple[Sequence[float], str], band: bool) -> None:
    """The mean of `curves` [steps, runs] as a line of colour and style `look`; a single run has no band."""
    heights = [interval(rates) for rates in curves.to_numpy()]
    mean, half = np.array([h.mean for h in heights]), np.nan_to_num([h.half for h in heights])
    panel.plot(curves.index, mean, label=name, color=look[0], linestyle=look[1])
    if band:
        panel.fill_between(curves.index, mean - half, mean + half, alpha=0.15, color=look[0], linewidth=0)
