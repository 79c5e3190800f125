"""The embedded toy task: chained modular arithmetic with a written chain of thought and a verifiable answer.

A question gives a start value and a chain of steps, worked from left to right modulo `modulus`::

    Start 45: +7 *3 -8 (mod 100)

The reference solution writes one line per step, then the boxed answer; values have leading zeros::

    45+7=52
    52*3=56
    56-8=48
    \\boxed{48}

A guess is right once in `modulus` tries. Noisy demonstrations have two faults: a step's result is wrong in the tens digit
(a forgotten carry), more often in hard steps than in easy ones, and the chain is given up before its end. A wrong result
is carried through the rest. So a model trained on them has pass rates that depend on the question: on the length of the
chain and on how many of its steps are hard.

Only numpy and the standard library are used.
"""

import hashlib
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np

DATA_SOURCE = "toy_modular"
MODULUS = 100
MIN_STEPS, MAX_STEPS = 2, 6
OPERATIONS = ("+", "-", "*")
OPERATION_SHARES = (0.45, 0.45, 0.10)
OPERANDS = {"+": (1, 9), "-": (1, 9), "*": (2, 3)}  # inclusive ranges
SLIPS = (-20, -10, 10, 20)  # what a slip adds to a step's result
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 48, 64  # chat template and end-of-turn token included, shipped tokenizer

_QUESTION = re.compile(r"Start (\d+):((?: [-+*]\d+)+) \(mod (\d+)\)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass(frozen=True)
class Question:
    """A start value in [0, modulus) and the steps, each an operation (one of + - *) and a positive operand."""

    start: int
    steps: tuple[tuple[str, int], ...]
    modulus: int = MODULUS


@dataclass(frozen=True)
class Noise:
    """Probabilities of the faults of a demonstration, each between 0 and 1.

    easy, hard: one step's result is off by a slip, for easy and for hard steps (see `is_hard`).
    stop: after one step, but not the last, the chain is given up and the value so far is boxed.
    """

    easy: float = 0.0
    hard: float = 0.0
    stop: float = 0.0

    def __post_init__(self):
        for name in ("easy", "hard", "stop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"Noise.{name} must be a probability, got {getattr(self, name)!r}")


def make_questions(
    n: int,
    rng: np.random.Generator,
    *,
    min_steps: int = MIN_STEPS,
    max_steps: int = MAX_STEPS,
    modulus: int = MODULUS,
    operands: Mapping[str, tuple[int, int]] = OPERANDS,
    exclude: Container[Question] = (),
) -> list[Question]:
    """`n` distinct questions, none of them in `exclude`, with chain lengths uniform over min_steps..max_steps.

    `operands` are inclusive ranges by operation. Deterministic in the state of `rng`. Raises ValueError when there are not
    enough of them to find.
    """
    if not 1 <= min_steps <= max_steps:
        raise ValueError(f"need 1 <= min_steps <= max_steps, got {min_steps} and {max_steps}")
    if modulus < 10:
        raise ValueError(f"modulus must be at least 10 (a slip changes the tens digit), got {modulus}")
    made: dict[Question, None] = {}
    misses = 0
    while len(made) < n:
        question = _draw_question(rng, int(rng.integers(min_steps, max_steps + 1)), modulus, operands)
        misses = misses + 1 if question in made or question in exclude else 0
        if misses > 10_000:
            raise ValueError(f"asked for {n} distinct questions, found {len(made)} with up to {max_steps} steps")
        if not misses:
            made[question] = None
    return list(made)


def _draw_question(
    rng: np.random.Generator, length: int, modulus: int, operands: Mapping[str, tuple[int, int]]
) -> Question:
    operations = rng.choice(OPERATIONS, size=length, p=OPERATION_SHARES)
    steps = tuple((str(op), int(rng.integers(*operands[op], endpoint=True))) for op in operations)
    return Question(int(rng.integers(modulus)), steps, modulus)


def apply(value: int, operation: str, operand: int, modulus: int) -> int:
    """One step of the chain, in [0, modulus)."""
    match operation:
        case "+":
            return (value + operand) % modulus
        case "-":
            return (value - operand) % modulus
        case "*":
            return (value * operand) % modulus
    raise ValueError(f"unknown operation {operation!r}, expected one of {OPERATIONS}")


def is_hard(value: int, operation: str, operand: int) -> bool:
    """Whether a step needs more than the units digit: a carry, a borrow, any product."""
    match operation:
        case "+":
            return value % 10 + operand >= 10
        case "-":
            return value % 10 < operand
    return True


def solve(question: Question) -> int:
    """The answer, in [0, modulus)."""
    value = question.start
    for operation, operand in question.steps:
        value = apply(value, operation, operand, question.modulus)
    return value


def written(value: int, modulus: int = MODULUS) -> str:
    """A value as it is written, with leading zeros: always as many digits as `modulus - 1` has."""
    return str(value).zfill(len(str(modulus - 1)))


def answer(question: Question) -> str:
    """The answer as it has to stand in the box."""
    return written(solve(question), question.modulus)


def hard_steps(question: Question) -> int:
    """How many steps of the correct chain are hard."""
    value, count = question.start, 0
    for operation, operand in question.steps:
        count += is_hard(value, operation, operand)
        value = apply(value, operation, operand, question.modulus)
    return count


def render_question(question: Question) -> str:
    """The user's message."""
    steps = " ".join(f"{operation}{operand}" for operation, operand in question.steps)
    return f"Start {written(question.start, question.modulus)}: {steps} (mod {question.modulus})"


def parse_question(text: str) -> Question:
    """The inverse of `render_question`. Raises ValueError on any other text."""
    match = _QUESTION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a toy question: {text!r}")
    steps = tuple((step[0], int(step[1:])) for step in match[2].split())
    return Question(int(match[1]), steps, int(match[3]))


def render_solution(question: Question, noise: Noise | None = None, rng: np.random.Generator | None = None) -> str:
    """The chain of thought and the boxed answer, right without `noise`, faulty at random with `noise` and `rng`."""
    noise = noise or Noise()
    if rng is None:
        if noise != Noise():
            raise ValueError("a noisy solution needs rng")
        rng = np.random.default_rng(0)  # drawn from, without effect
    value, lines = question.start, []
    for i, (operation, operand) in enumerate(question.steps):
        if i > 0 and rng.random() < noise.stop:
            break
        result = apply(value, operation, operand, question.modulus)
        if rng.random() < (noise.hard if is_hard(value, operation, operand) else noise.easy):
            result = (result + int(rng.choice(SLIPS))) % question.modulus
        lines.append(f"{written(value, question.modulus)}{operation}{operand}={written(result, question.modulus)}")
        value = result
    return "\n".join([*lines, f"\\boxed{{{written(value, question.modulus)}}}"])


def extract(text: str) -> str | None:
    """Content of the last ``\\boxed{...}``, stripped, or None. Linear in the text; nothing in it is evaluated."""
    found = _BOXED.findall(text)
    return found[-1].strip() if found else None


def grade(text: str, ground_truth: str) -> bool:
    """Exact string match of the extracted answer."""
    return extract(text) == ground_truth


def question_id(text: str, data_source: str = DATA_SOURCE) -> str:
    """Content hash of a rendered question: 16 hex digits, the same in every process and row order."""
    return hashlib.sha256(f"{data_source}\0{text}".encode()).hexdigest()[:16]
