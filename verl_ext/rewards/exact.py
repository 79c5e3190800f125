r"""Equality of SymPy values, as Math-Verify's parser returns them: exact where they are exact.

Math-Verify compares the 15th decimal of a difference, so that 2^{-99} is 2^{-100}, and 1 - 2^{-99} is 1 - 2^{-100}. Here only
a decimal is compared as a decimal. Pure functions; any of them may take any time, and belongs in a grading worker.
"""

from __future__ import annotations

from fractions import Fraction

from math_verify import verify
from sympy import (
    Basic,
    Eq,
    Expr,
    Float,
    MatrixBase,
    Number,
    Rational,
    Set,
    StrictGreaterThan,
    expand,
    nan,
    simplify,
    zoo,
)
from sympy.core.relational import GreaterThan, LessThan, Relational, StrictLessThan
from sympy.logic.boolalg import BooleanFunction

from verl_ext.rewards.numerals import Numeral, decimals_equal, is_rounding
from verl_ext.rewards.sampling import Point, common_points, vanishes

_DIGITS = 50
_FLIPPED = {LessThan: GreaterThan, StrictLessThan: StrictGreaterThan}


def same(gold: object, answer: object) -> bool:
    """Whether two parsed values are the same: numbers, expressions, matrices, sets, relations."""
    if _undefined(gold) or _undefined(answer):
        return False
    for kind, equal in _KINDS:
        if isinstance(gold, kind) and isinstance(answer, kind):
            return bool(equal(gold, answer))
    return _relation_and_set(gold, answer)


def same_expression(gold: Expr, answer: Expr) -> bool:
    """Equal for all values of their symbols; two constants by `same_number`."""
    if gold == answer:
        return True
    if not gold.free_symbols and not answer.free_symbols:
        return same_number(gold, answer)
    difference = _rational(gold) - _rational(answer)
    if difference == 0 or expand(difference) == 0:
        return True
    points = common_points(gold, answer)
    return points is not None and _is_zero(simplify(difference), points)


def same_number(gold: Expr, answer: Expr, written: Numeral | None = None) -> bool:
    """Equal constants. `written`, if one of them was written as a decimal: it may be the rounding of the other."""
    gold, answer = gold.doit(), answer.doit()
    if gold == answer:
        return True
    if gold.has(Float) or answer.has(Float):
        return _same_decimals(gold, answer) or _rounded(written, gold, answer)
    if gold.is_Rational and answer.is_Rational:
        return False
    return _same_constant(gold, answer)


def same_matrix(gold: MatrixBase, answer: MatrixBase) -> bool:
    """Equal entry by entry."""
    return gold.shape == answer.shape and all(same(g, a) for g, a in zip(gold.flat(), answer.flat(), strict=True))


def same_relation(gold: Basic, answer: Basic) -> bool:
    """Relations that say the same: multiples of one another, the other way round, or with the same solutions."""
    if isinstance(gold, BooleanFunction) or isinstance(answer, BooleanFunction):
        return type(gold) is type(answer) and _matched(list(gold.args), list(answer.args))
    (gold_difference, gold_kind), (answer_difference, answer_kind) = _one_sided(gold), _one_sided(answer)
    if gold_kind is not answer_kind or answer_difference == 0:
        return False
    factor = simplify(gold_difference / answer_difference)
    if factor.is_number and not _undefined(factor):
        return bool(factor != 0 if gold_kind is Eq else factor > 0)
    return _ordinary(gold, answer) and verify(gold, answer, timeout_seconds=None)


def _relation_and_set(gold: object, answer: object) -> bool:
    """x >= 2 and [2, oo), as Math-Verify compares them."""
    kinds = (Relational, BooleanFunction, Set)
    if not isinstance(gold, kinds) or not isinstance(answer, kinds) or not _ordinary(gold, answer):
        return False
    return verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None)


def _same_set(gold: Set, answer: Set) -> bool:
    return gold == answer or (_ordinary(gold, answer) and verify(gold, answer, timeout_seconds=None))


_KINDS = (
    (MatrixBase, same_matrix),
    (Set, _same_set),
    ((Relational, BooleanFunction), same_relation),
    (Expr, same_expression),
)


def _undefined(value: object) -> bool:
    return value is None or (isinstance(value, Basic) and value.has(nan, zoo))


def _same_decimals(gold: Expr, answer: Expr) -> bool:
    parts = [value.evalf(20, chop=True).as_real_imag() for value in (gold, answer)]
    numbers = [[_fraction(part) for part in value] for value in parts]
    return all(None not in pair and decimals_equal(*pair) for pair in zip(*numbers, strict=True))


def _rounded(written: Numeral | None, gold: Expr, answer: Expr) -> bool:
    exact = next((value for value in (gold, answer) if not value.has(Float)), None)
    value = None if exact is None or written is None else _fraction(exact.evalf(_DIGITS))
    return value is not None and is_rounding(written, value)


def _fraction(value: Expr) -> Fraction | None:
    if not isinstance(value, Number) or not value.is_finite:
        return None
    number = Rational(value)
    return Fraction(int(number.p), int(number.q))


def _same_constant(gold: Expr, answer: Expr) -> bool:
    """Exact constants that are not both rational: told apart by their digits, else proved equal."""
    points = common_points(gold, answer)
    return bool(points) and _is_zero(simplify(gold - answer), points[:1])


def _is_zero(difference: Expr, points: list[Point]) -> bool:
    """Whether a simplified difference is 0: proved, or by its value at all points."""
    if difference.is_number and difference.is_zero is not None:
        return bool(difference.is_zero)
    return vanishes(difference, points)


def _rational(expression: Expr) -> Expr:
    """Decimals as the fractions that they are."""
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _one_sided(relation: Relational) -> tuple[Expr, type]:
    """(left - right, kind), with > and >= for < and <=."""
    if type(relation) in _FLIPPED:
        return _rational(relation.rhs - relation.lhs), _FLIPPED[type(relation)]
    return _rational(relation.lhs - relation.rhs), type(relation)


def _matched(golds: list[Basic], answers: list[Basic]) -> bool:
    if len(golds) != len(answers):
        return False
    for gold in golds:
        found = next((answer for answer in answers if same(gold, answer)), None)
        if found is None:
            return False
        answers.remove(found)
    return True


def _ordinary(*values: Basic) -> bool:
    """Whether no number is so small or large that Math-Verify's comparison at 15 decimals could go wrong."""
    numbers = [number for value in values for number in value.doit().atoms(Number) if number.is_finite and number != 0]
    return all(Rational(1, 10**5) < abs(number) < 10**9 for number in numbers)
