"""Gold answers as text: one reading, or none."""

from decimal import Decimal

import numpy as np
import pytest

from verl_ext.gold import gold_text
from verl_ext.rewards import compute_score


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", "5"),
        (" 5 ", " 5 "),
        ("5.0", "5.0"),  # text stays as it was written
        (5, "5"),
        (-3, "-3"),
        (0, "0"),
        (10**30, "1" + 30 * "0"),
        (5.0, "5"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e22, "1" + 22 * "0"),
        (Decimal("5.00"), "5"),
        (Decimal("1.50"), "1.5"),
        (Decimal("100"), "100"),
        (np.int32(7), "7"),
        (np.float64(2.5), "2.5"),
        (["5"], "5"),
        ([5.0], "5"),
        (("x + 1",), "x + 1"),
    ],
)
def test_what_has_one_reading(value, text):
    assert gold_text(value) == text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "is missing"),
        ("", "is empty"),
        (" \n", "is empty"),
        ([], "is an empty list"),
        (["5", "6"], "is a list of 2 answers"),
        ([["5"]], "is a list of 1 answers"),
        ([None], "is missing"),
        ([""], "is empty"),
        (True, "is the truth value True"),
        ([False], "is the truth value False"),
        (np.bool_(True), "neither text nor a number"),
        (float("nan"), "neither text nor a number"),
        (float("inf"), "neither text nor a number"),
        (Decimal("NaN"), "neither text nor a number"),
        ({"answer": "5"}, "neither text nor a number"),
        (b"5", "neither text nor a number"),
        ({"5"}, "neither text nor a number"),
    ],
)
def test_what_has_none(value, why):
    with pytest.raises(ValueError, match=why):
        gold_text(value)


@pytest.mark.parametrize("gold", ["5", 5, 5.0, ["5"], [5], Decimal("5.00")])
@pytest.mark.parametrize("source", ["math", "custom"])
def test_the_reward_gets_that_reading(source, gold):
    assert compute_score(source, "so it is \\boxed{5}", gold)["score"] == 1
    assert compute_score(source, "so it is \\boxed{6}", gold)["score"] == 0


def test_the_reward_does_not_give_0_for_a_gold_that_nobody_can_read():
    with pytest.raises(ValueError, match="truth value"):
        compute_score("math", "\\boxed{5}", True)
