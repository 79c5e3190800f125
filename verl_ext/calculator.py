"""A calculator as a verl function tool: `actor_rollout_ref.rollout.multi_turn.function_tool_path=verl_ext/calculator.py`."""

import ast
import operator
from fractions import Fraction

from verl.tools.function_tool import function_tool

LIMIT = 200  # characters of an expression, which bounds the size of its numbers as well: there are no powers
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(expression: str) -> Fraction:
    """The exact value of an expression of numbers, + - * / and parentheses. Nothing in it is run.

    Raises ValueError, SyntaxError, RecursionError or MemoryError for anything else, and ZeroDivisionError.
    """
    if len(expression) > LIMIT:
        raise ValueError(f"longer than {LIMIT} characters")
    return _value(ast.parse(expression.strip().replace(",", ""), mode="eval").body)


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in OPERATORS:
            return OPERATORS[type(operation)](_value(left), _value(right))
    raise ValueError("not arithmetic")


@function_tool
def calculator(expression: str) -> str:
    """Value of an arithmetic expression.

    Args:
        expression: numbers with + - * / and parentheses, as in (12 + 30) * 1.5
    """
    try:
        value = value_of(expression)
        return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"
    except ZeroDivisionError:
        return "error: division by zero"
    except (ValueError, SyntaxError, RecursionError, MemoryError, OverflowError):
        return "error: not an expression of numbers, + - * / and parentheses"
