"""A gold answer as text, however the data file holds it: what a rule compares a response with."""

import math
from decimal import Decimal
from numbers import Integral, Real
from typing import Any


def gold_text(value: Any) -> str:
    """The one reading of a gold answer: text as it is, a number written out (5 for 5.0), a list of one of these as that one.

    Raises ValueError with a clause when there is none: nothing, a truth value, a mapping, a list of several.
    """
    if isinstance(value, list | tuple):
        if len(value) != 1 or isinstance(value[0], list | tuple):
            raise ValueError(f"is a list of {len(value)} answers" if value else "is an empty list")
        value = value[0]
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty")
        return value
    if value is None:
        raise ValueError("is missing")
    if isinstance(value, bool):
        raise ValueError(f"is the truth value {value}")
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal | Real) and math.isfinite(value):
        return _decimal(Decimal(repr(float(value))) if isinstance(value, Real) else value)
    raise ValueError(f"is {value!r:.40}, which is neither text nor a number")


def _decimal(value: Decimal) -> str:
    """Without the zeros that a column's type adds: 5 for 5.0 and for 5.00."""
    whole = value.to_integral_value()
    return str(int(whole)) if value == whole else f"{value.normalize():f}"
