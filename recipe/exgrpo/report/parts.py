"""What reports have in common: lines of Markdown tables, means with intervals as JSON and text, curves with their bands."""

import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipe.exgrpo.report.stats import Interval, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def table_lines(header: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A Markdown table."""
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spread(name: str, found: Interval | None) -> dict[str, float | None]:
    """`name` and `name_half` as JSON has them: null for what there is not."""
    if found is None:
        return {name: None, f"{name}_half": None}
    return {name: found.mean, f"{name}_half": None if math.isnan(found.half) else found.half}


def shown(row: dict, name: str, signed: bool = False) -> str:
    """A mean and its half width from `spread`; a signed one (a difference) is bold when its interval excludes zero."""
    mean, half = row[name], row[f"{name}_half"]
    if mean is None:
        return "–"
    text = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    text = text if half is None else f"{text} ± {half:.3f}"
    return f"**{text}**" if signed and half is not None and abs(mean) > half else text


def draw_curve(
    panel: "Axes",
    label: str,
    steps: Sequence[int],
    curves: Iterable[Sequence[float]],
    look: tuple[Any, str] = (None, "-"),
    band: bool = True,
) -> None:
    """The mean of `curves` (each of len(steps)) as a line, its 95 % t-interval as a band; no band for a single one.

    `look` is the colour (None: the next of the cycle) and the style of the line.
    """
    heights = [interval(values) for values in zip(*curves, strict=True)]
    mean, half = np.array([h.mean for h in heights]), np.nan_to_num([h.half for h in heights])
    (line,) = panel.plot(steps, mean, label=label, color=look[0], linestyle=look[1])
    if band:
        panel.fill_between(steps, mean - half, mean + half, alpha=0.15, color=line.get_color(), linewidth=0)


def finish_panel(panel: "Axes", title: str, xlabel: str, ylabel: str, legend: bool = True) -> None:
    """Labels, grid and, if there is a curve, its legend."""
    panel.set(title=title, xlabel=xlabel, ylabel=ylabel)
    panel.grid(alpha=0.3)
    if legend and panel.lines:
        panel.legend(fontsize="small", loc="lower right")


def png(drawing: "Figure") -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    content = io.BytesIO()
    drawing.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
