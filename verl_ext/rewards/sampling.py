"""Values of expressions at sample points: the cheap way to tell two of them apart, and the last to believe they are one.

The points are positive and negative, fractions and integers, small and large, so that |x| is not x and a step is seen. A point
at which one side has no real value is outside its domain and says nothing, unless the expressions are complex.
"""

from __future__ import annotations

from collections.abc import Iterable

from sympy import Basic, Expr, I, Number, Rational

DEEPEST = 1500  # digits after which a difference that nothing proves to be 0 counts as 0
_DIGITS = 50
_CLOSE = Rational(1, 10**40)  # relative: of so many digits the last ten may be lost
_FRACTIONS = (
    "0.7316",
    "1.3847",
    "2.1953",
    "0.2869",
    "3.4171",
    "1.9027",
    "0.5503",
    "2.7735",
    "0.9148",
    "1.6421",
    "3.1267",
    "2.4689",
)
_INTEGERS = (5, 12, 7, 3, 10, 4, 11, 6, 9, 8, 13, 2)
_ROWS = (
    tuple(map(Rational, _FRACTIONS)),
    tuple(10 * Rational(number) for number in _FRACTIONS),
    tuple(-10 * Rational(number) for number in _FRACTIONS),
    _INTEGERS,
    _INTEGERS[1:] + _INTEGERS[:1],
)

Point = dict[Basic, Rational | int]


def common_points(gold: Expr, answer: Expr) -> list[Point] | None:
    """The sample points at which both have a value; None as soon as the values differ at one."""
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if len(symbols) > len(_INTEGERS):
        return []
    is_complex = gold.has(I) or answer.has(I)
    points = []
    for row in _ROWS:
        point = dict(zip(symbols, row, strict=False))
        values = [_value(expression, point, is_complex) for expression in (gold, answer)]
        if None in values:
            continue
        if far_apart(*values):
            return None
        points.append(point)
    return points


def far_apart(one: Expr, other: Expr) -> bool:
    """Whether two values of 50 digits are different ones."""
    distance, size = abs(one - other), max(abs(one), abs(other))
    return bool(distance > size * _CLOSE)


def vanishes(difference: Expr, points: Iterable[Point]) -> bool:
    """Whether it is 0 at DEEPEST digits at each of the points, of which there must be one."""
    values = [abs(difference.subs(point).evalf(15, maxn=DEEPEST)) for point in points]
    return bool(values) and all(isinstance(v, Number) and bool(v < Rational(1, 10 ** (DEEPEST - 100))) for v in values)


def _value(expression: Expr, point: Point, is_complex: bool) -> Expr | None:
    value = expression.subs(point).evalf(_DIGITS)
    if not isinstance(abs(value), Number) or not value.is_finite or not (is_complex or value.is_real):
        return None
    return value
