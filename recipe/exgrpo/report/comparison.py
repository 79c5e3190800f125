"""Variants compared, training runs and laboratory runs alike: learning curves, paired by seed, with 95 % t-intervals.

A comparison starts from two long tables. Of the columns that identify a run, `settings` separate what is never compared (a
task, a base model), and `seeds` pair the runs of two variants:

    evaluations   one row per evaluation: *settings, variant, *seeds, step (int), pass_rate (float in [0, 1])
    costs         one row per run:        *settings, variant, *seeds, one column per cost (float; NaN where it is not known)

Settings and variants keep the order in which they first appear.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from recipe.exgrpo.report.stats import Interval, interval

Name = tuple[str, ...]  # (*setting, variant)


@dataclass(frozen=True)
class Comparison:
    """The two tables, see above. Raises ValueError (pandas) when a run was evaluated twice at one step."""

    evaluations: pd.DataFrame
    costs: pd.DataFrame
    settings: Sequence[str] = ()
    seeds: Sequence[str] = ("seed",)

    @cached_property
    def curves(self) -> dict[Name, pd.DataFrame]:
        """(*setting, variant) -> pass rates, float [steps, runs], NaN where a run was not evaluated at a step."""
        groups = self.evaluations.groupby([*self.settings, "variant"], sort=False)
        return {name: rows.pivot(index="step", columns=list(self.seeds), values="pass_rate") for name, rows in groups}

    def curve(self, name: Name) -> pd.DataFrame | None:
        """Pass rates, float [steps, runs], at the steps that all runs of the variant share; None without any."""
        found = self.curves.get(name)
        return None if found is None else _complete(found)

    def difference(self, name: Name, reference: str) -> pd.DataFrame | None:
        """Pass rates less those of `reference` in the same setting, float [steps, pairs], at the steps that all pairs share.

        None when there is nothing to pair: no seed in common, or no step but step 0, before which nothing was trained.
        """
        ours, theirs = self.curves.get(name), self.curves.get((*name[:-1], reference))
        if ours is None or theirs is None:
            return None
        pairs = ours.columns.intersection(theirs.columns, sort=None)
        found = _complete(ours[pairs] - theirs[pairs])
        return None if found is None or found.index[-1] == 0 else found

    def summary(self, reference: str) -> list[dict]:
        """One JSON-able row per setting and variant: levels, differences to `reference` and mean costs."""
        groups = self.costs.groupby([*self.settings, "variant"], sort=False)
        costs = groups[list(self.costs.columns.difference([*self.settings, "variant", *self.seeds], sort=False))].mean()
        means = costs.astype(object).where(costs.notna(), None).to_dict("records")
        return [
            dict(zip([*self.settings, "variant"], name, strict=True))
            | {"runs": len(runs)}
            | self._levels(name)
            | self._differences(name, reference)
            | mean
            for (name, runs), mean in zip(groups, means, strict=True)
        ]

    def _levels(self, name: Name) -> dict:
        curve = self.curve(name)
        start = None if curve is None else interval(curve.iloc[0])
        steps = (None, None) if curve is None else (int(curve.index[0]), int(curve.index[-1]))
        about = dict(zip(("validated_from", "validated_to"), steps, strict=True))
        return about | spread("start", start) | spread("final", final(curve)) | spread("area", mean_height(curve))

    def _differences(self, name: Name, reference: str) -> dict:
        found = None if name[-1] == reference else self.difference(name, reference)
        about = {"pairs": 0, "compared_to": None}
        if found is not None:
            about = {"pairs": found.shape[1], "compared_to": int(found.index[-1])}
        return about | spread("final_difference", final(found)) | spread("area_difference", mean_height(found))


def _complete(curves: pd.DataFrame) -> pd.DataFrame | None:
    """The steps at which no run is missing; None without a run or a step."""
    found = curves.dropna()
    return found if found.size else None


def final(curves: pd.DataFrame | None) -> Interval | None:
    """Of the last step, over the runs (or pairs) of `curves` [steps, runs]."""
    return None if curves is None else interval(curves.iloc[-1])


def mean_height(curves: pd.DataFrame | None) -> Interval | None:
    """Of the area under the curve divided by its steps (trapezoids), over the runs (or pairs) of `curves` [steps, runs].

    In the units of the curve; a single step is its own height.
    """
    if curves is None or len(curves) == 1:
        return final(curves)
    steps = curves.index.to_numpy()
    return interval(np.trapezoid(curves, steps, axis=0) / (steps[-1] - steps[0]))


def spread(name: str, found: Interval | None) -> dict[str, float | None]:
    """`name` and `name_half` as JSON has them: null for what is not known."""
    if found is None:
        return {name: None, f"{name}_half": None}
    return {name: found.mean, f"{name}_half": None if np.isnan(found.half) else found.half}
