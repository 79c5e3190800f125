"""Curves of a run beside its baseline, and its buckets over steps as a heat map: Bokeh figures, as JSON for the page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recipe.exgrpo.runs.metrics import RunMetrics

if TYPE_CHECKING:
    from bokeh.plotting import figure

POINTS = 800  # of a curve; longer ones are averaged
COLUMNS = 500  # of the heat map
COLOURS = ("#1f6fb4", "#d1602c", "#3a8f4d")
GREYS = ("#777777", "#aaaaaa", "#c4c4c4")
BUCKET = "experience/bucket/"
# title -> legend -> metric; those that a run does not have are left out.
PANELS: Mapping[str, Mapping[str, str]] = {
    "pass rate": {"held out": "val/pass_rate", "batch": "batch/pass_rate"},
    "questions": {
        "with trajectories": "experience/buffer_questions",
        "retired": "experience/retired_questions",
    },
    "stored trajectories": {"stored": "experience/buffer_trajectories", "added": "experience/added"},
    "replayed trajectories per step": {"replayed": "experience/replayed_rows"},
    "age of what is replayed, steps": {"mean": "experience/age_steps_mean", "largest": "experience/age_steps_max"},
    "importance weights": {
        "mean": "actor/replay_ratio_mean",
        "shaped": "actor/replay_shaped_mean",
        "effective sample size": "actor/replay_ess",
    },
    "entropy": {"batch": "actor/entropy", "replayed, nats": "experience/selected_entropy_mean"},
    "response length, tokens": {"mean": "response_length/mean"},
    "gradient norm": {"before clipping": "actor/grad_norm"},
    "seconds per step": {"step": "timing_s/step", "generation": "timing_s/gen"},
}


def curves(run: RunMetrics, baseline: RunMetrics | None) -> dict | None:
    """The panels as a Bokeh document (JSON); None when the run logged nothing of any."""
    from bokeh.embed import json_item
    from bokeh.layouts import gridplot
    from bokeh.models import Range1d

    last = max(found.last_step for found in (run, baseline) if found is not None)
    steps = Range1d(start=0, end=max(last, 1) * 1.02, bounds="auto")
    panels = [_panel(title, metrics, run, baseline, steps) for title, metrics in PANELS.items()]
    panels = [panel for panel in panels if panel is not None]
    if not panels:
        return None
    grid = gridplot(panels, ncols=2, sizing_mode="stretch_width", merge_tools=True, toolbar_location="right")
    return json_item(grid)


def _panel(
    title: str, metrics: Mapping[str, str], run: RunMetrics, baseline: RunMetrics | None, steps
) -> "figure | None":
    from bokeh.plotting import figure

    drawn = {legend: run.values(metric) for legend, metric in metrics.items()}
    if all(values.empty for values in drawn.values()):
        return None
    panel = figure(
        title=title, height=230, x_range=steps, tools="xpan,xwheel_zoom,box_zoom,reset", output_backend="canvas"
    )
    for i, (legend, metric) in enumerate(metrics.items()):
        if baseline is not None and not baseline.values(metric).empty:
            _line(panel, baseline.values(metric), f"baseline: {legend}", GREYS[i], "dashed")
        if not drawn[legend].empty:
            _line(panel, drawn[legend], legend, COLOURS[i], "solid")
    panel.legend.label_text_font_size = "11px"
    panel.legend.background_fill_alpha = 0.6
    panel.legend.click_policy = "hide"
    panel.legend.padding = panel.legend.spacing = 1
    return panel


def _line(panel: "figure", values: pd.Series, legend: str, colour: str, dash: str) -> None:
    from bokeh.models import HoverTool

    thin = thinned(values)
    line = panel.line(
        thin.index.to_numpy(), thin.to_numpy(), legend_label=legend, color=colour, line_dash=dash, width=1.6
    )
    if len(thin) <= 60:
        panel.scatter(thin.index.to_numpy(), thin.to_numpy(), color=colour, size=4, legend_label=legend)
    tips = [("", legend), ("step", "@x{0}"), ("value", "@y{0.0000}")]
    panel.add_tools(HoverTool(renderers=[line], tooltips=tips, visible=False))


def thinned(values: pd.Series) -> pd.Series:
    """At most POINTS values: means of as many stretches of equal length, at their mean steps."""
    if len(values) <= POINTS:
        return values
    stretch = np.arange(len(values)) * POINTS // len(values)
    means = pd.DataFrame({"step": values.index, "value": values.to_numpy()}).groupby(stretch).mean()
    return pd.Series(means["value"].to_numpy(), index=means["step"].to_numpy())


def heat_map(run: RunMetrics) -> dict | None:
    """Eligible questions by their latest successes of K over steps, as a Bokeh document (JSON); None without a store."""
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure
    from bokeh.transform import linear_cmap

    cells = bucket_cells(run)
    if cells is None:
        return None
    plot = figure(
        title="eligible questions by latest successes of K", height=330, sizing_mode="stretch_width", x_axis_label="step",
        y_axis_label="successes", tools="xpan,xwheel_zoom,box_zoom,reset", x_range=(cells["left"][0], cells["right"][-1]),
    )  # fmt: skip
    colours = linear_cmap("questions", "Viridis256", 0, max(*cells["questions"], 1))
    drawn = plot.quad(left="left", right="right", bottom="bottom", top="top", source=ColumnDataSource(cells),
                      fill_color=colours, line_color=None)  # fmt: skip
    plot.add_tools(HoverTool(tooltips=[("step", "@step"), ("successes", "@k"), ("questions", "@questions{0.#}")]))
    plot.add_layout(drawn.construct_color_bar(width=10, title="questions"), "right")
    plot.yaxis.ticker = sorted(set(cells["k"]))
    plot.grid.visible = False
    return json_item(plot)


def bucket_cells(run: RunMetrics) -> dict[str, Sequence] | None:
    """One cell per logged step (at most COLUMNS, then evenly chosen) and success count: its edges and what it holds."""
    names = [f"{BUCKET}{k}" for k in sorted(_counts(run))]
    table = run.metrics[names].dropna() if names else run.metrics.iloc[:0]
    if table.empty:
        return None
    chosen = np.unique(np.linspace(0, len(table) - 1, min(len(table), COLUMNS)).round().astype(int))
    table = table.iloc[chosen]
    steps = table.index.to_numpy()
    right = np.append(steps[1:], steps[-1] + 1) - 0.5
    left = np.insert(right[:-1], 0, steps[0] - 0.5)
    cells = [
        (steps[i], k, left[i], right[i], k - 0.5, k + 0.5, table[f"{BUCKET}{k}"].iloc[i])
        for i in range(len(steps))
        for k in sorted(_counts(run))
    ]
    keys = ("step", "k", "left", "right", "bottom", "top", "questions")
    return {
        key: [cell[i].item() if hasattr(cell[i], "item") else cell[i] for cell in cells] for i, key in enumerate(keys)
    }


def _counts(run: RunMetrics) -> set[int]:
    endings = (name.removeprefix(BUCKET) for name in run.metrics.columns if name.startswith(BUCKET))
    return {int(k) for k in endings if k.isdecimal()}
