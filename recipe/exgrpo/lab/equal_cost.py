"""Variants at equal cost: what each run had reached when it had spent what the cheapest run beside it spent in all."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from recipe.exgrpo.lab.tables import CELL
from recipe.exgrpo.report.comparison import Comparison
from recipe.exgrpo.report.parts import Columns, code, difference, level, markdown_table, number

SETTING, SEEDS = ["family", "base"], ["base_seed", "seed"]


def at_equal_cost(results: pd.DataFrame, cost: str) -> pd.DataFrame:
    """One row per run: its pass rate at a common amount of `cost` (column `amount`), linear between evaluations.

    `results` has one row per evaluation, `cost` being what the run has spent so far. The amount is, for each setting and pair
    of seeds, the least that any variant spent by its last evaluation, so that nothing is extrapolated. ValueError for a cost
    that the results do not have.
    """
    if cost not in results:
        raise ValueError(f"the results have no cost called {cost!r}.")
    spent = results.groupby(CELL, sort=False)[cost].max()
    amounts = spent.groupby([*SETTING, *SEEDS]).transform("min").rename("amount")
    runs = []
    for cell, curve in results.groupby(CELL, sort=False):
        amount = float(amounts[cell])
        pass_rate = float(np.interp(amount, curve[cost], curve["pass_rate"]))
        runs.append(dict(zip(CELL, cell, strict=True)) | {"amount": amount, "pass_rate": pass_rate})
    return pd.DataFrame(runs)


def equal_cost_tables(results: pd.DataFrame, costs: Sequence[str], reference: str) -> list[str]:
    """Lines of Markdown: for each cost and setting, the pass rates at equal cost and their differences to `reference`."""
    lines = []
    for cost in costs:
        name = cost.replace("_", " ")
        columns: Columns = {
            "variant": code("variant"),
            "runs": number("runs"),
            f"at {name}": number("amount", ",.0f"),
            "pass@1": level("final"),
            "difference": difference("final_difference"),
        }
        runs = at_equal_cost(results, cost).assign(step=1)  # an evaluation after the start, which a comparison is about
        found = Comparison(runs[[*CELL, "step", "pass_rate"]], runs[[*CELL, "amount"]], SETTING, SEEDS)
        rows = found.summary(reference)
        for family, base in dict.fromkeys((row["family"], row["base"]) for row in rows):
            chosen = [row for row in rows if (row["family"], row["base"]) == (family, base)]
            lines += ["", f"### {family}, {base} base, at equal {name}", "", *markdown_table(columns, chosen)]
    return lines
