"""The embedded tool task: chained arithmetic modulo 100 with operands too long for the head, and a calculator.

The questions are those of `toy_task`, with longer operands::

    Start 47: *62 +91 (mod 100)

The calculator, a tool, does one operation a call. A solution hands it one step after another and boxes the last result::

    47*62           -> 14
    14+91           -> 05
    \\boxed{05}

Noisy demonstrations have two faults: a step is done in the head, as a written line whose result is a guess, more often for
products and differences (hard) than for sums (easy); and the chain is given up before its end. So a model trained on them calls
the tool sometimes, and its pass rate depends on the question. A guess is right once in a hundred.

Only numpy and the standard library are used.
"""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

# Relative: the laboratory loads this folder under another name.
from .toy_task import Noise, Question, apply, make_questions, written

DATA_SOURCE = "toy_modular_tool"  # graded as `toy_modular`
MODULUS = 100
MIN_STEPS, MAX_STEPS = 1, 3
OPERANDS = {"+": (10, 99), "-": (10, 99), "*": (11, 99)}  # inclusive ranges
MAX_CALLS = 4  # one more than a solution needs
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 40, 72  # all turns, templates and ends of turns included, shipped tokenizer

_OPERATION = re.compile(r"([0-9]{1,2})([-+*])([0-9]{1,2})")


@dataclass(frozen=True)
class Turn:
    """What the model writes before it ends its turn; `call` is the expression that it then hands to the calculator, if any."""

    text: str
    call: str | None = None


def tool_questions(n: int, rng: np.random.Generator, exclude: Container[Question] = ()) -> list[Question]:
    """`n` distinct questions, none of them in `exclude`. Deterministic in the state of `rng`."""
    sizes = {"min_steps": MIN_STEPS, "max_steps": MAX_STEPS, "modulus": MODULUS, "operands": OPERANDS}
    return make_questions(n, rng, exclude=exclude, **sizes)


def calculate(expression: str) -> str:
    """The result of one operation modulo 100, two digits; "error" for anything else, untrusted text included."""
    found = _OPERATION.fullmatch(expression)
    return written(apply(int(found[1]), found[2], int(found[3]), MODULUS), MODULUS) if found else "error"


def solve_in_turns(question: Question, noise: Noise, rng: np.random.Generator) -> list[Turn]:
    """A demonstration with faults drawn from `rng`; the last turn is the boxed answer and calls nothing."""
    value, turns, lines = question.start, [], ""
    for i, (operation, operand) in enumerate(question.steps):
        if i > 0 and rng.random() < noise.stop:
            break
        expression = f"{written(value, MODULUS)}{operation}{operand}"
        if rng.random() < (noise.easy if operation == "+" else noise.hard):
            value = int(rng.integers(MODULUS))
            lines += f"{expression}={written(value, MODULUS)}\n"
        else:
            turns.append(Turn(lines, expression))
            value, lines = int(calculate(expression)), ""
    return [*turns, Turn(f"{lines}\\boxed{{{written(value, MODULUS)}}}")]


def replies(turns: Sequence[Turn]) -> list[str | None]:
    """The calculator's answer to each turn, None to one that calls nothing."""
    return [None if turn.call is None else calculate(turn.call) for turn in turns]
