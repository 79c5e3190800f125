"""The calculator's values, and that untrusted text is neither run nor a way to keep it busy."""

import time
from fractions import Fraction

import pytest

from verl_ext.calculator import calculator, value_of

pytestmark = pytest.mark.verl


VALUES = {
    "1+2*3": "7",
    " (12 + 30) * 1.5 ": "63",
    "-2 - -3": "1",
    "7/2": "3.5",
    "1,234 * 2": "2468",
    "2/3": "0.6666666667",
}
BAD = [
    "",
    "1+",
    "9**9**9",
    "__import__('os')",
    "x",
    "True",
    "1 if 1 else 2",
    "'a'*9",
    "9" * 300,
    "(" * 190 + "1",
    "\\boxed{4}",
]


@pytest.mark.parametrize(("expression", "value"), VALUES.items())
def test_arithmetic(expression, value):
    assert calculator(expression) == value


def test_values_are_exact():
    assert value_of("0.1 + 0.2") == Fraction(3, 10)


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_an_error_that_repeats_none_of_it(text):
    begun = time.process_time()
    assert calculator(text) == "error: not an expression of numbers, + - * / and parentheses"
    assert time.process_time() - begun < 0.5


def test_division_by_zero():
    assert calculator("1/(2-2)") == "error: division by zero"
