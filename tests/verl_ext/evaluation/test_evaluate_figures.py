"""Figures of an evaluation against enumeration and hand calculation; the other grader."""

from itertools import combinations
from math import sqrt
from statistics import pstdev

import pytest

from verl_ext.evaluation.oat_like import boxed_answer, normalised, oat_like_score
from verl_ext.evaluation.statistics import pass_at_k, standard_error_questions, standard_error_samples, summarise
from verl_ext.rewards import compute_score, shared_grader


@pytest.mark.parametrize(("n", "successes"), [(1, 0), (1, 1), (4, 1), (5, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_of_k_that_hold_a_success(n, successes):
    samples = [1] * successes + [0] * (n - successes)
    for k in range(1, n + 1):
        draws = [any(draw) for draw in combinations(samples, k)]
        assert pass_at_k(n, successes, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_wants_k_samples():
    with pytest.raises(ValueError, match="pass@5 needs at least 5 samples"):
        pass_at_k(4, 1, 5)


def test_standard_errors_by_hand():
    assert standard_error_questions([1.0, 0.0, 1.0, 0.0]) == pytest.approx(sqrt((1 / 3) / 4))
    assert standard_error_questions([0.5]) is None
    # Two questions of four samples: variances 1/3 (two of four) and 1/4 (one of four).
    scores = [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert standard_error_samples(scores) == pytest.approx(sqrt((1 / 3) / 4 + (1 / 4) / 4) / 2)
    assert standard_error_samples([[1], [0]]) is None


def test_error_over_samples_vanishes_where_samples_agree_and_that_over_questions_does_not():
    figures = summarise([[1.0] * 8, [0.0] * 8], [5] * 16, [False] * 16)
    assert figures["stderr_samples"] == 0.0
    assert figures["stderr_questions"] == pytest.approx(pstdev([0, 1]))


def test_summary():
    figures = summarise(
        [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], [10, 20, 30] * 4, [True] + [False] * 11, available=9
    )
    assert figures["mean"] == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert figures["pass_at"] == pytest.approx({"1": figures["mean"], "2": (1 / 2 + 1) / 3, "4": 2 / 3})
    assert (figures["questions"], figures["samples"], figures["available"]) == (3, 4, 9)
    assert (figures["tokens_mean"], figures["tokens_max"]) == (20, 30)
    assert figures["truncated"] == pytest.approx(1 / 12)


def test_pass_at_k_stops_at_the_last_power_of_two():
    assert set(summarise([[1.0] * 6], [1] * 6, [False] * 6)["pass_at"]) == {"1", "2", "4"}


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (r"\frac12", "1/2"),
        ("0.5", r"\dfrac{1}{2}"),
        (r"\tfrac 3{4}", r"\frac{3}{4}"),
        (r"x = 5", "5"),
        (r"50\%", "50"),
        (r"\text{blue}", "blue"),
        (r"12\text{ cm}", "12"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"90^\circ", "90"),
        (".25", "0.25"),
        (r"a \leq b", r"a\le b"),
    ],
)
def test_one_spelling(answer, same):
    assert normalised(answer) == normalised(same)


@pytest.mark.parametrize(
    ("answer", "other"), [("12", "1/2"), ("x=5=y", "y"), (r"\sqrt{12}", r"\sqrt{1}2"), ("ab=5", "6")]
)
def test_different_answers_stay_different(answer, other):
    assert normalised(answer) != normalised(other)


def test_box_is_the_last_of_the_whole_response():
    assert boxed_answer(r"\boxed{1} then \boxed{2} \fbox{3}") == "2"
    assert boxed_answer(r"only \fbox{3}") == "3"
    assert boxed_answer("no box: 4") is None


@pytest.mark.parametrize(
    ("text", "gold", "think_format", "training", "oat_like"),
    [
        (r"</think> \boxed{4}", "4", True, 1.0, 1.0),
        (r"\boxed{4}", "4", True, 0.0, 1.0),  # no end of thought
        ("The answer is $4$.", "4", False, 1.0, 0.0),  # no box
        (r"\boxed{\frac{2}{4}}", r"\frac12", False, 1.0, 1.0),  # by Math-Verify
        (r"\boxed{5}", "4", False, 0.0, 0.0),
        (r"\boxed{4}", "14", False, 0.0, 0.0),
        (r"\boxed{" + "(" * 50 + "}", "4", False, 0.0, 0.0),
    ],
)
def test_graders_differ_in_what_they_extract(text, gold, think_format, training, oat_like):
    grader = shared_grader()
    assert compute_score("math500", text, gold, {"think_format": think_format})["score"] == training
    assert oat_like_score("math500", text, gold, grader) == oat_like


def test_the_same_spelling_needs_no_parser():
    class Unreachable:
        def run(self, *call):
            raise AssertionError("Math-Verify was called")

    assert oat_like_score("math500", r"\boxed{\dfrac12}", "1/2", Unreachable()) == 1.0


def test_other_sources_keep_their_rule():
    assert oat_like_score("arc_c", r"\boxed{B}", "B", shared_grader()) == 1.0
    assert oat_like_score("toy_modular", r"\boxed{7}", "07", shared_grader()) == 0.0  # as written, not as a number
