"""The rule of a study: what paired differences say about each registered claim, with or without correction for their number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from recipe.exgrpo.lab.registration import Hypothesis, Registration, Stage
from recipe.exgrpo.report.comparison import Comparison, final, mean_height, spread
from recipe.exgrpo.report.stats import Interval, student_cdf, student_quantile

LEVEL = 0.05


def verdict(found: Interval | None, expect: str, margin: float, planned: int, corrected: float | None = None) -> str:
    """What the 95 % interval of a paired difference says about an expectation.

    `supported` when all of it is on the expected side, `contradicted` when all of it is on the other, else `undecided`; for
    `not_below` the sides meet at -margin. `not tested` with fewer runs than were planned. A `corrected` p-value that is not
    below 0.05 leaves it undecided.
    """
    if not _tested(found, planned):
        return "not tested"
    low, high = found.mean - found.half, found.mean + found.half
    if expect == "below":
        low, high = -high, -low
    border = _border(expect, margin)
    if corrected is not None and corrected >= LEVEL:
        return "undecided"
    return "supported" if low > border else "contradicted" if high < border else "undecided"


def _border(expect: str, margin: float) -> float:
    return -margin if expect == "not_below" else 0.0


def _tested(found: Interval | None, planned: int) -> bool:
    return found is not None and found.n >= planned and not math.isnan(found.half)


def p_value(found: Interval, border: float = 0.0) -> float:
    """Two-sided p-value of the t-test that the mean is `border`, from a mean and its 95 % half width."""
    away = abs(found.mean - border)
    if found.half == 0:
        return float(away == 0)
    error = found.half / student_quantile(0.975, found.n - 1)
    return 2 * (1 - student_cdf(away / error, found.n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given: max over j <= i of (m - j + 1) p_(j), at most 1."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def judge(registration: Registration, results: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """One JSON-able row per claim: a hypothesis in a setting, or a pooled one in all of them."""
    claims = [
        (hypothesis, setting)
        for hypothesis in registration.hypotheses
        for setting in settings_of(hypothesis, registration.stages[hypothesis.stage])
    ]
    pairs = [paired(results.get(h.stage), h, registration.stages[h.stage], setting) for h, setting in claims]
    corrected = _corrected(registration, claims, pairs)
    return [
        _row(hypothesis, setting, registration.stages[hypothesis.stage], found, p)
        for (hypothesis, setting), found, p in zip(claims, pairs, corrected, strict=True)
    ]


def settings_of(hypothesis: Hypothesis, stage: Stage) -> list[tuple[str, ...]]:
    """The settings that a hypothesis is judged in, one claim each."""
    if hypothesis.pooled:
        return [("all",)]
    return [pair for pair in stage.settings_compared if not hypothesis.bases or pair[1] in hypothesis.bases]


def paired(
    found: Comparison | None, hypothesis: Hypothesis, stage: Stage, setting: tuple[str, ...]
) -> pd.DataFrame | None:
    """Differences to the reference, float [steps, pairs]: in a setting, or their mean over all settings of the stage.

    None without runs, and for a mean of which a setting has none.
    """
    if found is None:
        return None
    if not hypothesis.pooled:
        return found.difference((*setting, hypothesis.variant), hypothesis.against)
    each = [found.difference((*one, hypothesis.variant), hypothesis.against) for one in stage.settings_compared]
    if any(one is None for one in each):
        return None
    mean = sum(each) / len(each)  # aligned by seeds and steps: what one of them lacks is NaN
    return mean.dropna(how="all").dropna(axis=1)


def _corrected(
    registration: Registration, claims: Sequence[tuple], pairs: Sequence[pd.DataFrame | None]
) -> list[float | None]:
    """Corrected p-values of the pooled claims; an untested one counts as one with p = 1. None where nothing is corrected."""
    if registration.correction == "none":
        return [None] * len(claims)
    chosen = [i for i, (hypothesis, _) in enumerate(claims) if hypothesis.pooled]
    adjusted = holm([_p(claims[i][0], registration, final(pairs[i])) for i in chosen])
    places = dict(zip(chosen, adjusted, strict=True))
    return [places.get(i) for i in range(len(claims))]


def _p(hypothesis: Hypothesis, registration: Registration, found: Interval | None) -> float:
    if not _tested(found, registration.stages[hypothesis.stage].runs):
        return 1.0
    return p_value(found, _border(hypothesis.expect, hypothesis.margin))


def _row(
    hypothesis: Hypothesis, setting: tuple[str, ...], stage: Stage, pairs: pd.DataFrame | None, p: float | None
) -> dict[str, Any]:
    return (
        {"id": hypothesis.id, "claim": hypothesis.claim, "setting": ", ".join(setting)}
        | {"runs": 0 if pairs is None else pairs.shape[1], "planned": stage.runs, "corrected_p": p}
        | spread("final", final(pairs))
        | spread("area", mean_height(pairs))
        | {"verdict": verdict(final(pairs), hypothesis.expect, hypothesis.margin, stage.runs, p)}
    )
