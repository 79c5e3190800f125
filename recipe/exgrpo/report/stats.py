"""The few statistics of the report: means with Student intervals, paired differences, area under a learning curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values and the half width of its confidence interval, nan for fewer than two values."""

    mean: float
    half: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half


def student_cdf(t: float, df: int) -> float:
    """P(T <= t) for `df` = 1, 2, ... degrees of freedom, by the finite series for whole df (Abramowitz & Stegun 26.7)."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    if df == 1:
        return 0.5 + angle / math.pi
    total, term = 0.0, cosine if df % 2 else 1.0
    for j in range(2 + df % 2, df + 2, 2):
        total += term
        term *= cosine**2 * (j - 1) / j
    return 0.5 + ((angle + sine * total) / math.pi if df % 2 else sine * total / 2)


def student_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p, for 0.5 <= p < 1; ValueError otherwise."""
    if not 0.5 <= p < 1 or df < 1:
        raise ValueError(f"need 0.5 <= p < 1 and df >= 1; got p={p}, df={df}")
    low, high = 0.0, 1.0
    while student_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and Student interval; ValueError without values."""
    if not len(values):
        raise ValueError("an interval needs at least one value")
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean, math.nan, n)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, student_quantile(0.5 + confidence / 2, n - 1) * error, n)


def paired(values: Mapping, reference: Mapping, confidence: float = 0.95) -> Interval | None:
    """Interval of value - reference over the keys (seeds) that both have; None without any."""
    common = sorted(set(values) & set(reference))
    return interval([values[key] - reference[key] for key in common], confidence) if common else None


def area_under_curve(steps: Sequence[float], values: Sequence[float]) -> float:
    """Mean height of the curve over its steps (trapezoids), so in the units of `values`; the value itself for one point."""
    if len(steps) == 1:
        return float(values[0])
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
