"""Means with Student intervals. (SciPy is not among the pinned packages.)"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values and the half width of its confidence interval, nan for fewer than two values."""

    mean: float
    half: float
    n: int


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
    """The t with P(T <= t) = p, for 0.5 <= p < 1, by bisection; ValueError otherwise."""
    if not 0.5 <= p < 1 or df < 1:
        raise ValueError(f"need 0.5 <= p < 1 and df >= 1; got p={p}, df={df}")
    low, high = 0.0, 1.0
    while student_cdf(high, df) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % Student interval; ValueError without values."""
    values = np.asarray(values, float)
    if not values.size:
        raise ValueError("an interval needs at least one value")
    n, mean = values.size, float(values.mean())
    if n < 2:
        return Interval(mean, math.nan, n)
    return Interval(mean, student_quantile(0.975, n - 1) * float(values.std(ddof=1)) / math.sqrt(n), n)
