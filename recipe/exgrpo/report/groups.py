"""Training runs put together by variant, as the tables of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from recipe.exgrpo.report.comparison import Comparison
from recipe.exgrpo.report.costs import COSTS
from recipe.exgrpo.runs.metrics import RunMetrics


@dataclass(frozen=True)
class Group:
    """The runs of a variant. Raises ValueError for two runs of one seed."""

    name: str
    runs: Sequence[RunMetrics]

    def __post_init__(self) -> None:
        seeds = [run.seed for run in self.runs if run.seed is not None]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"{self.name}: two runs have seed {twice[0]}; a variant has one run per seed.")


def compare(groups: Sequence[Group]) -> Comparison:
    """The runs of all groups, by variant and seed; a run without a known seed has its folder in place of it, and so no pair."""
    runs = [
        (run, {"variant": group.name, "seed": str(run.folder) if run.seed is None else run.seed})
        for group in groups
        for run in group.runs
    ]
    columns = ["variant", "seed", "step", "pass_rate"]
    evaluations = [
        one | {"step": step, "pass_rate": rate} for run, one in runs for step, rate in run.validation.items()
    ]
    costs = [one | {name: cost(run) for name, cost in COSTS.items()} for run, one in runs]
    return Comparison(
        pd.DataFrame(evaluations, columns=columns), pd.DataFrame(costs).astype(dict.fromkeys(COSTS, float))
    )


def summarise(groups: Sequence[Group], comparison: Comparison, reference: str) -> list[dict]:
    """One JSON-able row per group: that of the comparison, and `steps`, the last ones of its runs."""
    rows = comparison.summary(reference)
    return [
        row | {"steps": sorted({run.last_step for run in group.runs})} for row, group in zip(rows, groups, strict=True)
    ]
