"""Equality of parsed values, as Math-Verify's parser returns them: what `math_verify.grader` could take over as it is."""

from fractions import Fraction

import pytest
import sympy
from math_verify import parse
from sympy import And, Eq, FiniteSet, Float, I, Integer, Interval, Matrix, Ne, Rational, Symbol, exp, oo, pi, sqrt, zoo

from verl_ext.rewards.exact import same
from verl_ext.rewards.numerals import (
    Numeral,
    decimals_equal,
    is_rounding,
    join_thousands,
    numeral,
    numerals_equal,
    write_fractions,
)
from verl_ext.rewards.units import parse_unit

X, Y, N = sympy.symbols("x y n", real=True)
TINY = Rational(1, 2**99)

SAME = [
    (Rational(1, 3), Float("0.333333")),
    (1 - TINY, 1 - TINY),
    (sqrt(8), 2 * sqrt(2)),
    (sqrt(3 + 2 * sqrt(2)), 1 + sqrt(2)),
    (exp(I * pi), Integer(-1)),
    (X**2 - 1, (X - 1) * (X + 1)),
    (sympy.sin(X) ** 2 + sympy.cos(X) ** 2, Integer(1)),
    (Float("0.5") * X, X / 2),
    (sympy.binomial(2 * N, N), sympy.factorial(2 * N) / sympy.factorial(N) ** 2),
    (oo, oo),
    (Eq(Y, 2 * X), Eq(2 * X - Y, 0)),
    (Eq(X, 1), Eq(2 * X, 2)),
    (X < 1, sympy.Gt(1, X)),
    (2 * X < 2, X < 1),
    (And(X > 0, X < 1), And(X < 1, X > 0)),
    (X >= 2, Interval(2, oo)),
    (Matrix([1, 2]), Matrix([Rational(2, 2), Float("2.0")])),
    (FiniteSet(1, 2), FiniteSet(2, 1)),
    (Interval(0, 1), Interval(0, 1)),
    (Float("1.6e-19"), Float("1.61e-19")),
    (sympy.log(X**2), 2 * sympy.log(X)),
    (sympy.cos(pi * N), (-1) ** N),
    (sympy.Function("f")(X) * 2, sympy.Function("f")(X) + sympy.Function("f")(X)),
]
DIFFERENT = [
    (1 - TINY, 1 - TINY / 2),
    (TINY, TINY / 2),
    (Integer(0), TINY),
    (Integer(1), 1 - TINY),
    (1 / sympy.factorial(2006), 1 / sympy.factorial(2004)),
    (sqrt(2), sqrt(2) + Rational(1, 10**200)),
    (exp(-1000), exp(-1001)),
    (X + TINY, X + TINY / 2),
    (TINY * X, TINY * X / 2),
    (Eq(Y, TINY * X), Eq(Y, TINY * X / 2)),
    (X > TINY, X > TINY / 2),
    (Matrix([TINY]), Matrix([TINY / 2])),
    (FiniteSet(TINY), FiniteSet(TINY / 2)),
    (Interval(0, TINY), Interval(0, TINY / 2)),
    (Integer(0), Float("1.6e-19")),
    (Float("0"), Float("1e-9")),
    (zoo, zoo),
    (sympy.nan, sympy.nan),
    (oo, -oo),
    (X, Y),
    (X, Symbol("X", real=True)),
    (X < 1, X <= 1),
    (X < 1, X > 1),
    (Eq(X, 1), Ne(X, 1)),
    (Matrix([1, 2]), Matrix([[1, 2]])),
    (Matrix([1, 2]), FiniteSet(1, 2)),
    (sympy.S.EmptySet, Integer(0)),
    (And(X > 0, X < 1), And(X > 0, X < 2)),
    (sympy.Abs(X), X),
    (sqrt(X**2), X),
    (sympy.ceiling(N / 2) + 1, Integer(2)),
    (sympy.floor(N / 2), (N - 1) / 2),
    ((-1) ** N, Integer(1)),
    (sympy.sign(X), Integer(1)),
    (sympy.cos(pi * N), Integer(1)),
    (X + Rational(1, 10**300), X),
    (X * (1 + Rational(1, 10**300)), X),
    (sympy.Function("f")(X), sympy.Function("g")(X)),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_the_same(gold, answer):
    assert same(gold, answer) is True
    assert same(answer, gold) is True


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold, answer):
    assert same(gold, answer) is False
    assert same(answer, gold) is False


def test_what_math_verify_parses_needs_no_other_form():
    (gold, *_), (answer, *_) = parse(r"$1-\frac{1}{2^{99}}$"), parse(r"$1-\frac{1}{2^{100}}$")
    assert same(gold, gold)
    assert not same(gold, answer)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", "12"),
        ("-12", "-12"),
        ("+.5", "1/2"),
        ("5.", "5"),
        ("1/2", "1/2"),
        (r"\frac{-3}{4}", "-3/4"),
        ("2 1/2", "5/2"),
        (r"-2\frac{1}{2}", "-5/2"),
        (r"0.\overline{3}", "1/3"),
        (r"0.1\dot{6}", "1/6"),
        ("4.5e3", "4500"),
        ("1e-3", "1/1000"),
        ("2e27", str(2 * 10**27)),
        (r"1.5 \times 10^{-2}", "3/200"),
        ("10^{3}", "1000"),
        ("2e-1", None),
        ("2 3/2", None),
        ("1 2", None),
        ("1/0", None),
        ("--5", None),
        ("x", None),
        ("", None),
        ("1e999999", None),
    ],
)
def test_numerals(text, value):
    found = numeral(text)
    assert (found is None) if value is None else (found is not None and found.value == sympy.Rational(value))


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("12 345", "12345"),
        ("1,234.5", "1234.5"),
        ("1 000 000", "1000000"),
        ("1,000, 2,000", "1000, 2000"),
        ("1, 234", "1, 234"),
        ("12 34", "12 34"),
        ("1 2 3", "1 2 3"),
        ("0,123", "0,123"),
        ("1234,567", "1234,567"),
        ("1 234 5", "1 234 5"),
    ],
)
def test_thousands(text, joined):
    assert join_thousands(text) == joined


def test_mixed_numbers_and_repeating_decimals_become_what_no_parser_misreads():
    assert write_fractions(r"2 1/2 + 3\frac{1}{4}") == r"(2+\frac{1}{2}) + (3+\frac{1}{4})"
    assert write_fractions(r"x^2 1/2, 2\frac{3}{2}") == r"x^2 1/2, 2\frac{3}{2}"
    assert write_fractions(r"0.\overline{3}x") == r"\frac{1}{3}x"


@pytest.mark.parametrize(
    ("short", "exact", "rounded"),
    [("2.6667", "8/3", True), ("2.6666", "8/3", False), ("2.667", "8/3", False), ("0.00033333", "1/3000", True)],
)
def test_roundings(short, exact, rounded):
    assert is_rounding(numeral(short), Fraction(exact)) is rounded
    assert numerals_equal(numeral(exact), numeral(short)) is rounded


def test_decimals():
    one = numeral("1").value
    assert decimals_equal(one, one + one / 10**7)
    assert not decimals_equal(one, one + one / 10**5)
    assert not decimals_equal(0 * one, one / 10**9)
    assert not numerals_equal(numeral("10000"), numeral("9999.99999"))
    assert not numerals_equal(numeral("149034"), numeral(r"1.4903 \times 10^5"))
    assert numeral("2.50") == Numeral(one * 5 / 2, one / 100, 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("hours", "hrs"),
        ("cm^2", "square centimeters"),
        (r"\text{ m/s}", "meters per second"),
        ("mph", "miles per hour"),
        ("^{\\circ}", "degrees"),
        (r"\%", "percent"),
        ("$", "dollars"),
        ("feet", "ft."),
        ("cubic feet", r"\text{ft}^3"),
        ("apples", "apple"),
    ],
)
def test_units_with_two_names(one, other):
    assert parse_unit(one) == parse_unit(other)


def test_units_convert():
    hour, minute = parse_unit("hour"), parse_unit("minutes")
    assert (hour.powers, hour.factor / minute.factor) == (minute.powers, 60)
    assert parse_unit("km").powers != parse_unit("km^2").powers
    assert parse_unit("million dollars").multiplier == 10**6
    assert parse_unit("square units").unnamed
