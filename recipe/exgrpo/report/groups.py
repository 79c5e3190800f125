"""Runs compared by variant: held-out curves paired by seed, and costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from recipe.exgrpo.report.costs import COSTS
from recipe.exgrpo.report.parts import spread
from recipe.exgrpo.report.stats import area_under_curve, interval, paired
from recipe.exgrpo.runs.metrics import RunMetrics


@dataclass(frozen=True)
class Curves:
    """Held-out pass rates [len(steps)] by seed (by folder where no seed is known), at steps that all of them have."""

    steps: list[int]
    rates: dict[Any, list[float]]

    def at(self, place: int) -> dict[Any, float]:
        """Seed -> rate at a position in `steps`."""
        return {key: rates[place] for key, rates in self.rates.items()}

    @property
    def areas(self) -> dict[Any, float]:
        """Seed -> mean height of its curve."""
        return {key: area_under_curve(self.steps, rates) for key, rates in self.rates.items()}


@dataclass(frozen=True)
class Group:
    """The runs of a variant. Raises ValueError for two runs of one seed."""

    name: str
    runs: Sequence[RunMetrics]

    def __post_init__(self) -> None:
        seeds = [run.seed for run in self.runs if run.seed is not None]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"{self.name}: two runs have seed {twice[0]}; a variant has one run a seed.")

    @cached_property
    def validated(self) -> dict[Any, RunMetrics]:
        """The runs with a validation, by seed."""
        return {str(run.folder) if run.seed is None else run.seed: run for run in self.runs if run.validation}

    @cached_property
    def curves(self) -> Curves | None:
        """Of all validated runs, at the steps they share; None where they share none."""
        return curves_of(self.validated)


def curves_of(runs: dict[Any, RunMetrics], steps: set[int] | None = None) -> Curves | None:
    """Curves at the validation steps that `runs` share (within `steps`); None without any."""
    shared = [set(run.validation) for run in runs.values()] + ([] if steps is None else [steps])
    common = sorted(set.intersection(*shared)) if runs else []
    if not common:
        return None
    return Curves(common, {key: [run.validation[step] for step in common] for key, run in runs.items()})


def summarise(groups: Sequence[Group], reference: Group) -> list[dict]:
    """One JSON-able row a group; differences are to `reference`, paired by seed, with 95 % t-intervals."""
    return [
        {"variant": group.name, "runs": len(group.runs), "steps": sorted({run.last_step for run in group.runs})}
        | _levels(group)
        | _differences(group, reference)
        | {name: _mean(cost, group) for name, cost in COSTS.items()}
        for group in groups
    ]


def _levels(group: Group) -> dict:
    curves = group.curves
    found = {"start": None, "final": None, "area": None}
    if curves:
        found = {"start": curves.at(0), "final": curves.at(-1), "area": curves.areas}
    steps = {"validated_from": curves and curves.steps[0], "validated_to": curves and curves.steps[-1]}
    rates = {name: values and interval(list(values.values())) for name, values in found.items()}
    return steps | {key: value for name, rate in rates.items() for key, value in spread(name, rate).items()}


def compared(group: Group, reference: Group) -> tuple[Curves, Curves] | None:
    """The curves of both, seeds in common only, at the steps that all of these share; None if there is nothing to pair."""
    seeds = set(group.validated) & set(reference.validated)
    if group is reference or not seeds:
        return None
    ours, theirs = ({seed: g.validated[seed] for seed in sorted(seeds)} for g in (group, reference))
    other = curves_of(theirs)
    mine = other and curves_of(ours, set(other.steps))
    return (mine, curves_of(theirs, set(mine.steps))) if mine else None


def _differences(group: Group, reference: Group) -> dict:
    pair = compared(group, reference)
    final = area = None
    if pair:
        final, area = paired(pair[0].at(-1), pair[1].at(-1)), paired(pair[0].areas, pair[1].areas)
    about = {"pairs": len(pair[0].rates) if pair else 0, "compared_to": pair and pair[0].steps[-1]}
    return about | spread("final_difference", final) | spread("area_difference", area)


def _mean(cost: Callable[[RunMetrics], float | None], group: Group) -> float | None:
    """Over the runs that have it."""
    found = [value for run in group.runs if (value := cost(run)) is not None]
    return fmean(found) if found else None
