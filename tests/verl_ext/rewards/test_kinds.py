"""Every row of the tables of answers (tests/helpers/answer_kinds.py) has its right value, and reading takes no time."""

import random
import time

import pytest
from answer_kinds import LATER_RIGHT, LATER_WRONG, RIGHT, WRONG

from verl_ext.rewards import compute_score
from verl_ext.rewards.choice import chosen_letter
from verl_ext.rewards.equality import equal
from verl_ext.rewards.grade import final_answer
from verl_ext.rewards.prechecks import ANSWER_LIMIT
from verl_ext.rewards.reading import read
from verl_ext.rewards.statements import stated_answer


def rows(table):
    return [pytest.param(*pair, id=f"{kind}: {pair[0]} | {pair[1]}") for kind, pairs in table.items() for pair in pairs]


@pytest.mark.parametrize(("answer", "gold"), [*rows(WRONG), *rows(LATER_WRONG)])
def test_wrong_answers_are_wrong(answer, gold):
    assert not equal(read(gold), read(answer))


@pytest.mark.parametrize(("answer", "gold"), [*rows(RIGHT), *rows(LATER_RIGHT)])
def test_right_answers_are_right(answer, gold):
    assert equal(read(gold), read(answer))


def test_the_whole_reward_says_so_too():
    """Every row boxed, through prechecks, plain numbers and workers."""
    tables = ((WRONG, 0.0), (LATER_WRONG, 0.0), (RIGHT, 1.0), (LATER_RIGHT, 1.0))
    rows = [(*pair, value) for table, value in tables for pairs in table.values() for pair in pairs]
    differing = [row for row in rows if compute_score("math500", f"so \\boxed{{{row[0]}}}.", row[1])["score"] != row[2]]
    assert differing == []


@pytest.mark.parametrize("table", [WRONG | LATER_WRONG, RIGHT | LATER_RIGHT])
def test_no_row_is_there_twice(table):
    pairs = [pair for rows_of_kind in table.values() for pair in rows_of_kind]
    assert len(pairs) == len(set(pairs))


PIECES = (
    *(
        "a",
        " ",
        "1",
        "1 ",
        "1,",
        "12,345 ",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        r"\text{",
        r"\text{a} ",
        "x_",
        "'",
        "^(",
        "-",
        "0",
    ),
    *(
        r"\frac",
        r"\frac{",
        r"\sqrt",
        "and ",
        ",",
        "=",
        "1=",
        r"\pm ",
        "a/",
        "1/",
        "1 1/",
        r"\in ",
        r"\cup ",
        "1:",
        "°",
        r"\%",
    ),
    *(
        "$",
        r"\$",
        "**",
        r"\(",
        r"\left(",
        r"\boxed{",
        r"\boxed{1}",
        "answer is ",
        "Answer: B ",
        "½",
        "²",
        "√",
        "三",
        ".",
    ),
    *(
        r"0.\overline{3}",
        "_{",
        r"\prime",
        "|",
        "for all ",
        r"\quad",
        " hours",
        "1 hour ",
        "1e",
        "10^",
        r"\begin{cases}",
        r"\\",
    ),
    *("A_{1}", "A", "\n", r"\!", "not ", "**\n", "option ", "\t", "&"),
)


def test_reading_takes_no_time_on_any_repeated_pieces():
    """Between two letters, each run of pieces up to the limits: nothing is worse than quadratic in any pattern."""
    rng = random.Random(0)
    units = [*PIECES, *("".join(rng.choices(PIECES, k=rng.randint(2, 4))) for _ in range(300))]
    for unit in units:
        text = rng.choice(PIECES) + unit * (ANSWER_LIMIT // len(unit)) + rng.choice(PIECES)
        for function, argument in (
            (read, text),
            (stated_answer, text * 2),
            (chosen_letter, text * 2),
            (final_answer, text * 50),
        ):
            start = time.process_time()
            function(argument)
            assert time.process_time() - start < 1.0, (function.__name__, unit)
