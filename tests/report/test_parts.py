"""Tables and figures of reports: what a cell says, and that a figure keeps room for its curves and shows its whole legend."""

import warnings

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from recipe.exgrpo.report.parts import BANDS, difference, draw_curves, learning_curves, level, markdown_table, number

# Two runs over three steps.
CURVES = pd.DataFrame({0: [0.1, 0.2, 0.3], 1: [0.1, 0.3, 0.3]}, index=[0, 10, 20])


@pytest.mark.parametrize(("mean", "half", "plain", "signed"), [
    (0.25, 0.1, "0.250 ± 0.100", "**+0.250 ± 0.100**"),
    (-0.25, 0.25, "-0.250 ± 0.250", "-0.250 ± 0.250"),
    (-0.25, None, "-0.250", "-0.250"),
    (None, None, "–", "–"),
])  # fmt: skip
def test_a_difference_is_bold_when_its_interval_excludes_zero(mean, half, plain, signed):
    row = {"x": mean, "x_half": half}
    assert (level("x")(row), difference("x")(row)) == (plain, signed)


def test_a_table_escapes_bars_and_shows_what_is_not_known_as_a_dash():
    lines = markdown_table({"name": number("name"), "cost": number("cost", ",.0f")}, [
        {"name": "a|b", "cost": 12345.6}, {"name": "c", "cost": None},
    ])  # fmt: skip
    assert lines == ["| name | cost |", "| --- | --- |", "| a\\|b | 12,346 |", "| c | – |"]


@pytest.mark.parametrize("panels", [1, 3])
@pytest.mark.parametrize("names", [
    ["on_policy"],
    [f"no_trajectory_selection_{i}" for i in range(17)],
    [f"variant_{i}" for i in range(30)],
])  # fmt: skip
def test_the_whole_legend_is_inside_the_figure_and_the_panels_keep_their_height(panels, names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib only warns when nothing is left for the curves
        drawing = draw_curves({f"panel {i}": dict.fromkeys(names, CURVES) for i in range(panels)}, "pass rate")
        canvas = FigureCanvasAgg(drawing)
        canvas.draw()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    extent, page = legend.get_window_extent(), drawing.bbox
    assert page.x0 <= extent.x0 < extent.x1 <= page.x1
    assert page.y0 <= extent.y0
    assert all(panel.get_window_extent().height >= 3 * drawing.dpi for panel in drawing.axes)  # inches


def test_bands_are_left_out_where_they_would_hide_the_curves():
    few, many = (draw_curves({"": {str(i): CURVES for i in range(n)}}, "pass rate").axes[0] for n in (BANDS, BANDS + 1))
    assert (len(few.collections), len(many.collections)) == (BANDS, 0)


def test_a_figure_without_curves_is_still_a_figure():
    assert learning_curves({"": {}}, "pass rate").startswith(b"\x89PNG")
