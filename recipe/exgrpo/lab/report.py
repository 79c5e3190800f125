"""The report of a study: Markdown tables and a figure of learning curves, the same bytes from the same results."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recipe.exgrpo.lab.suites import VARIANTS
from recipe.exgrpo.lab.tables import CELL, RESULTS, TIMINGS, read_table
from recipe.exgrpo.report.comparison import Comparison
from recipe.exgrpo.report.parts import Columns, code, difference, learning_curves, level, markdown_table, number
from verl_ext.files import write_atomically

SETTING, SEEDS = ("family", "base"), ("base_seed", "seed")
COLUMNS: Columns = {
    "variant": code("variant"),
    "runs": number("runs"),
    "final pass@1": level("final"),
    "final difference": difference("final_difference"),
    "area": level("area"),
    "area difference": difference("area_difference"),
    "fresh rollouts": number("fresh_rollouts", ",.0f"),
    "tokens sampled": number("sampled_tokens", ",.0f"),
    "tokens updated": number("updated_tokens", ",.0f"),
    "tokens scored": number("scored_tokens", ",.0f"),
    "seconds": number("seconds", ".0f"),
}


def read_results(folder: Path) -> Comparison:
    """The tables of `exgrpo lab run`, by family and base, variants in the order of `VARIANTS`, others after them.

    Raises ValueError when runs of one variant were evaluated at different steps.
    """
    results, timings = (_ordered(read_table(folder / name)) for name in (RESULTS, TIMINGS))
    evaluations = results[[*CELL, "step", "pass_rate"]]
    totals = [table.drop_duplicates(CELL, keep="last").drop(columns="step") for table in (results, timings)]
    found = Comparison(evaluations, pd.merge(*totals, on=CELL, how="left").drop(columns="pass_rate"), SETTING, SEEDS)
    for (family, base, variant), curves in found.curves.items():
        if curves.isna().any(axis=None):
            raise ValueError(f"runs of {variant} on {family}, {base} were evaluated at different steps.")
    return found


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    place = {name: i for i, name in enumerate(VARIANTS)}
    places = table["variant"].map(place).fillna(len(place))
    return table.assign(place=places).sort_values(["family", "base", "place"], kind="stable").drop(columns="place")


def markdown(rows: Sequence[dict], reference: str) -> str:
    """The report as text: one table per setting; a difference whose interval excludes zero is bold."""
    parts = ["# Laboratory report", ""]
    parts += [
        f"Pass@1 on held-out questions. Differences are to `{reference}`, paired by base seed and seed, with 95 % t-intervals;",
        "bold ones exclude zero. The area is that under the learning curve, as its mean height. Costs are means per run.",
    ]
    return "\n".join([*parts, *setting_tables(rows), "", "![learning curves](curves.png)", ""])


def setting_tables(rows: Sequence[dict], heading: str = "##") -> list[str]:
    """Lines of one Markdown table per setting, each under a heading."""
    lines, columns = [], COLUMNS
    if any("rate" in row for row in rows):
        columns = {"variant": COLUMNS["variant"], "learning rate (x the family's)": number("rate", "g"), **COLUMNS}
    for setting in dict.fromkeys((row["family"], row["base"]) for row in rows):
        chosen = [row for row in rows if (row["family"], row["base"]) == setting]
        lines += ["", f"{heading} {setting[0]}, {setting[1]} base", "", *markdown_table(columns, chosen)]
    return lines


def figure(results: Comparison) -> bytes:
    """Learning curves as PNG, one panel per setting."""
    panels: dict[str, dict[str, pd.DataFrame]] = {}
    for (family, base, variant), curves in results.curves.items():
        panels.setdefault(f"{family}, {base} base", {})[variant] = curves
    return learning_curves(panels, "held-out pass@1")


def write_report(folder: Path, reference: str) -> tuple[list[dict], list[Path]]:
    """Write `report.md` and `curves.png` into `folder`; returns the summary and what was written.

    Raises ValueError when no run of the variant `reference` is there.
    """
    results = read_results(folder)
    if reference not in set(results.costs["variant"]):
        raise ValueError(f"no run of {reference!r} is in {folder}; differences need one (--against).")
    rows = results.summary(reference)
    contents = {"report.md": markdown(rows, reference).encode(), "curves.png": figure(results)}
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return rows, [folder / name for name in contents]
