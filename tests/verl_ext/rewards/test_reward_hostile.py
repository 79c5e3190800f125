"""Untrusted model output, by accident or to game the reward: no stall, no crash, no wrong 'correct'."""

import os
import time

import pytest

from verl_ext.rewards import compute_score, pool

DEADLINE_S = 1.0
OPTIONS = {"deadline_s": DEADLINE_S, "workers": 1}
CANARY = "/tmp/reward_canary"


def boxed(answer: str) -> str:
    return "\\boxed{" + answer + "}"


def nested(opening: str, closing: str, depth: int, core: str = "1") -> str:
    return opening * depth + core + closing * depth


STALLING = {
    "tower": boxed("9^{9^{9^{9}}}"),
    "tower of tens": boxed("10^{10^{10}}"),
    "factorial": boxed("100000000!"),
    "factorial of a factorial": boxed("((50!)!)!"),
    "binomial": boxed(r"\binom{10^9}{5 \cdot 10^8}"),
    "sum": boxed(r"\sum_{i=1}^{10^9} i^i"),
    "product": boxed(r"\prod_{i=1}^{10^8} i"),
    "integral": boxed(r"\int_0^1 e^{x^{x^x}} dx"),
    "power chain": boxed("x^" * 300 + "x"),
}
ABSURD = {
    "100k parentheses": boxed(nested("(", ")", 50_000)),
    "deep braces": boxed(nested("{", "}", 15)),
    "deep fractions": boxed(nested(r"\frac{1}{", "}", 19)),
    "giant integer": boxed("9" * 100_000),
    "giant integer below the size limit": boxed("9" * 500),
    "giant decimal": boxed("0." + "3" * 100_000),
    "long list": boxed(",".join(str(i) for i in range(1000))),
    "circled digit": boxed("⑤"),
    "dingbat digit": boxed("❺"),
    "Roman numeral fraction": boxed("𐧾"),
}
WRONG = {
    "giant exponent": boxed("1e1000000000"),
    "plain tower": "the answer is 5**9**9**9**9",
    "superscript": boxed("5²"),
    "vulgar fraction": boxed("5½"),
    "full-width digits": boxed("５５"),
    # About a second in the parser, however long the chain is: on a fast machine it ends just before the deadline.
    "subscript chain": boxed("x_" * 300 + "x"),
    "empty": "",
    "blank": " \n\t ",
    "empty box": boxed(""),
    "unclosed box": r"\boxed{5} and then \boxed{5",
    "unclosed fraction": boxed(r"\frac{5}{"),
    "unclosed environment": boxed(r"\begin{pmatrix} 5"),
    "minus signs": boxed("-" * 901 + "5"),
    "bars": boxed("|" * 500),
    "nan": boxed("nan"),
    "undefined": boxed("0/0"),
    "infinity minus infinity": boxed(r"\infty - \infty"),
    "infinity": boxed(r"\infty"),
    "bounded": boxed(r"\sin(\infty)"),
    "Cyrillic look-alike": boxed("х = б"),
    "zero-width": boxed("\u200b"),
    "lone surrogate": boxed("\ud800"),
    "NUL": boxed("\x00"),
    "import": boxed(f"__import__('os').system('touch {CANARY}')"),
    "import in text": boxed(rf"\text{{__import__('os').system('touch {CANARY}')}}"),
    "import without a box": f"The answer is __import__('os').system('touch {CANARY}')",
    "open": boxed(f"open('{CANARY}', 'w')"),
    "TeX shell": boxed(rf"\write18{{touch {CANARY}}}"),
    "list": boxed("1, 2, 3, 4, 5, 6"),
    "set": boxed(r"\{4, 5\}"),
    "either": boxed(r"4 \text{ or } 5"),
    "either in text": boxed(r"\text{4 or 5}"),
    "logical or": boxed(r"4 \lor 5"),
    "plus minus": boxed(r"4 \pm 1"),
    "interval": boxed("[4, 6]"),
    "inequality": boxed("4 < 5"),
    "chain": boxed("1 = 2 = 3 = 4 = 5"),
    "arrow": boxed(r"4 \to 5"),
    "implication": boxed(r"4 \Rightarrow 5"),
    "approximation": boxed(r"4 \approx 5"),
    "semicolon": boxed("4; 5"),
    "cases": boxed(r"\begin{cases} 4 \\ 5 \end{cases}"),
    "matrix": boxed(r"\begin{pmatrix} 4 & 5 \end{pmatrix}"),
    "numbers": boxed(r"\mathbb{R}"),
    "any x": boxed("x"),
    "tautology": boxed("x = x"),
    "answer inside the answer": boxed("4. The final answer is $5$. I hope"),
    "list without a box": "The answer is $4$ or $5$",
    "dollars": "$" * 50_000,
    "anchors": "final answer is " * 5_000,
    "earlier box": boxed("5") + " no, " + boxed("4"),
    "tags": "</think>" * 10_000 + boxed("4"),
}


@pytest.fixture(autouse=True)
def nothing_was_executed():
    yield
    assert not os.path.exists(CANARY)


def grade_in_time(text: str, gold: str = "5") -> dict:
    """Grades `text`, then a right and a wrong sample after it. The limit by the clock is for the busiest machine."""
    compute_score("math500", boxed("1"), "1", **OPTIONS)  # not counted: the pool's first start
    start = time.monotonic()
    score = compute_score("math500", text, gold, **OPTIONS)
    assert time.monotonic() - start < pool.WALL_FACTOR * DEADLINE_S + 1
    for answer, expected in (("5", 1.0), ("6", 0.0)):
        after = [compute_score("math500", boxed(answer), "5", **OPTIONS) for _ in range(3)]
        assert max(a["score"] for a in after) == expected, after
    return score


@pytest.mark.parametrize("name", STALLING)
def test_stalling_input_is_killed_at_the_deadline(name):
    score = grade_in_time(STALLING[name])
    assert score["score"] == 0.0
    assert score["timeout"] + score["error"] == 1.0


def test_a_second_in_the_parser_is_too_long_for_a_shorter_deadline():
    options = OPTIONS | {"deadline_s": 0.3}
    compute_score("math500", boxed("1"), "1", **options)  # not counted: the pool's first start
    score = compute_score("math500", WRONG["subscript chain"], "5", **options)
    assert score["score"] == 0.0
    assert score["timeout"] + score["error"] == 1.0


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_input_is_refused_without_a_worker(name):
    start = time.process_time()
    score = compute_score("math500", ABSURD[name], "5", **OPTIONS)
    assert time.process_time() - start < 0.1
    assert (score["score"], score["precheck"]) == (0.0, 1.0)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_graded_wrong(name):
    assert grade_in_time(WRONG[name])["score"] == 0.0


@pytest.mark.parametrize(
    "thinking", ["</think>" * 10_000, "</think>" + boxed("5") + "</think>", boxed("5") + "</think>"]
)
def test_repeating_the_tag_gives_no_second_chance(thinking):
    assert compute_score("math500", thinking + boxed("4"), "5", think_format=True, **OPTIONS)["score"] == 0.0
    assert compute_score("math500", thinking, "5", think_format=True, **OPTIONS)["score"] == 0.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0", "1.6e-19"),  # equal at the 6 decimals that Math-Verify compares
        ("0.0000001", "1.6e-19"),
        ("x = 4 = y = 5", "x = 5"),
        ("0 = 1", "x^2 + y^2 = 1"),
        ("x = x", "y = 2x + 1"),
        (r"\text{Sunday or Monday}", r"\text{Sunday}"),
        ("{1,2,3}", "(1, 2)"),
        (r"\emptyset", "0"),
        (r"\infty", r"-\infty"),
    ],
)
def test_forged_equivalence(answer, gold):
    assert compute_score("math500", boxed(answer), gold, deadline_s=5.0)["score"] == 0.0
    assert compute_score("math500", boxed(gold), gold, deadline_s=5.0)["score"] == 1.0


@pytest.mark.slow
def test_throughput_is_back_to_normal_after_200_hostile_samples():
    def seconds(options: dict) -> float:
        start = time.perf_counter()
        scores = [compute_score("math500", boxed(f"{i}/2"), "21", **options) for i in range(200)]
        assert (
            sum(score["error"] + score["timeout"] for score in scores) <= 20
        )  # a pool that only fails is fast as well
        return time.perf_counter() - start

    tried, fresh = ({"deadline_s": deadline_s, "workers": 1} for deadline_s in (0.3, 0.301))
    hostile = [*STALLING.values(), *WRONG.values(), *ABSURD.values()]
    scores = [compute_score("math500", hostile[i % len(hostile)], "5", **tried) for i in range(200)]
    assert sum(score["score"] for score in scores) == 0.0
    assert sum(score["timeout"] for score in scores) >= 20
    rounds = [(seconds(tried), seconds(fresh)) for _ in range(6)]  # in turn: the machine may be busy with other things
    after, normal = (min(times) for times in zip(*rounds, strict=True))
    assert after < 2 * normal
