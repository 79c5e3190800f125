"""Task families: questions, faulty demonstrations, and a verifier that guessing hardly ever passes.

A family is an object with the members of `Family`; `FAMILIES` lists them by name.
"""

import importlib
import importlib.util
import sys
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import numpy as np

DIGITS = tuple("0123456789")
BOX = "\\boxed{"


@dataclass(frozen=True)
class Faults:
    """Probabilities of the faults of a demonstration, each in [0, 1].

    easy, hard: that an easy or a hard step has a wrong result; stop: that the solution breaks off before a step.
    """

    easy: float = 0.0
    hard: float = 0.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("easy", "hard", "stop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Faults.{name} must be a probability; got {getattr(self, name)!r}.")


class Family(Protocol):
    """`pieces` are the vocabulary; prompts have at most `prompt_tokens`, responses with their EOS at most `response_tokens`.

    `learning_rate` is the one at which on-policy training takes about 150 steps to level off.
    """

    name: str
    pieces: tuple[str, ...]
    prompt_tokens: int
    response_tokens: int
    learning_rate: float

    def questions(self, n: int, rng: np.random.Generator, exclude: Container = ()) -> list:
        """`n` distinct questions (hashable), none of them in `exclude`."""

    def prompt(self, question) -> str:
        """The question as text; no two questions share it."""

    def demonstration(self, question, faults: Faults, rng: np.random.Generator) -> str:
        """A written solution with faults drawn from `rng`."""

    def is_long(self, question) -> bool:
        """Whether a bimodal base hardly ever solves it, as can be seen from the prompt."""

    def grade(self, question, text: str) -> bool:
        """Whether the boxed answer of `text` is correct."""


@runtime_checkable
class ToolFamily(Family, Protocol):
    """A family with a tool: a call ends with the piece `close`, behind which the sampler puts what the tool answers."""

    close: str

    def reply(self, text: str) -> str:
        """The tool's answer to the call at the end of `text`, a response so far: untrusted, and any text is answered."""


class Chain:
    """The toy task of `data/`: chained arithmetic modulo 100, one line per step. One guess in 100 is correct."""

    name = "chain"
    pieces = (*DIGITS, "Start ", ":", " +", " -", " *", " (mod 100)", "+", "-", "*", "=", "\n", BOX, "}")
    prompt_tokens, response_tokens = 17, 53
    learning_rate = 1e-4

    def __init__(self) -> None:
        self.task = _data_module("toy_task")

    def questions(self, n: int, rng: np.random.Generator, exclude: Container = ()) -> list:
        return self.task.make_questions(n, rng, exclude=exclude)

    def prompt(self, question) -> str:
        return self.task.render_question(question)

    def demonstration(self, question, faults: Faults, rng: np.random.Generator) -> str:
        return self.task.render_solution(question, self.task.Noise(faults.easy, faults.hard, faults.stop), rng)

    def is_long(self, question) -> bool:
        return len(question.steps) > 3

    def grade(self, question, text: str) -> bool:
        return self.task.grade(text, self.task.answer(question))


class Ways:
    """The questions of `Chain`, each with several correct solutions of different value.

    In a demonstration half of the sums and products have their operands swapped (`7+45=52` for `45+7=52`), where hard steps
    have a quarter of the faults and easy ones four times as many. So each step has a safe and a risky form, and one stored
    success is worth more than another: trajectory selection can make a difference.
    """

    name = "ways"
    pieces = Chain.pieces
    prompt_tokens, response_tokens = Chain.prompt_tokens, Chain.response_tokens
    learning_rate = Chain.learning_rate

    def __init__(self) -> None:
        self.chain = Chain()

    def questions(self, n: int, rng: np.random.Generator, exclude: Container = ()) -> list:
        return self.chain.questions(n, rng, exclude)

    def prompt(self, question) -> str:
        return self.chain.prompt(question)

    def demonstration(self, question, faults: Faults, rng: np.random.Generator) -> str:
        turned = replace(faults, easy=min(4 * faults.easy, 1.0), hard=faults.hard / 4)
        value, lines = question.start, []
        for i, (operation, operand) in enumerate(question.steps):
            if i > 0 and rng.random() < faults.stop:
                break
            turn = operation != "-" and rng.random() < 0.5
            step = replace(question, start=value, steps=((operation, operand),))
            line = self.chain.demonstration(step, turned if turn else faults, rng).partition("\n")[0]
            left, result = line.split("=")
            lines.append(f"{operand}{operation}{left[:2]}={result}" if turn else line)
            value = int(result)
        return "\n".join([*lines, f"{BOX}{value:02d}}}"])

    def is_long(self, question) -> bool:
        return self.chain.is_long(question)

    def grade(self, question, text: str) -> bool:
        return self.chain.grade(question, text)


class Addition:
    """Sums of two numbers of up to four digits, worked column by column from the right with the carry written out.

    `0358+2967=` is worked as `0+8+7=15`, `1+5+6=12`, ..., then the boxed sum of five digits. A hard column has a carry out;
    its fault is to forget it. An easy column's fault is a digit one too high. One guess in thousands is correct.
    """

    name = "addition"
    pieces = (*DIGITS, "+", "=", "\n", BOX, "}")
    width = 4
    prompt_tokens, response_tokens = 2 * width + 2, 9 * width + width + 4
    learning_rate = 2e-5

    def questions(self, n: int, rng: np.random.Generator, exclude: Container = ()) -> list[tuple[int, int]]:
        made: dict[tuple[int, int], None] = {}
        while len(made) < n:
            top = 10 ** int(rng.integers(2, self.width + 1))
            question = (int(rng.integers(top)), int(rng.integers(top)))
            if question not in exclude:
                made[question] = None
        return list(made)

    def prompt(self, question: tuple[int, int]) -> str:
        return "{:0{w}d}+{:0{w}d}=".format(*question, w=self.width)

    def demonstration(self, question: tuple[int, int], faults: Faults, rng: np.random.Generator) -> str:
        a, b = question
        carry, total, lines = 0, 0, []
        for column in range(self.width):
            if column > 0 and rng.random() < faults.stop:
                break
            x, y = a // 10**column % 10, b // 10**column % 10
            worked = x + y + carry
            if rng.random() < (faults.hard if worked > 9 else faults.easy):
                worked = worked - 10 if worked > 9 else worked + 1
            lines.append(f"{carry}+{x}+{y}={worked:02d}")
            total, carry = total + worked % 10 * 10**column, worked // 10
        else:
            total += carry * 10**self.width
        return "\n".join([*lines, f"{BOX}{total:0{self.width + 1}d}}}"])

    def is_long(self, question: tuple[int, int]) -> bool:
        return max(question) >= 10 ** (self.width - 1)

    def grade(self, question: tuple[int, int], text: str) -> bool:
        return text.rpartition(BOX)[2] == f"{sum(question):0{self.width + 1}d}}}" and BOX in text


class Calculator:
    """The tool task of `data/`: chained arithmetic modulo 100 with a calculator that does one operation a call.

    A call is `[47*62]`, behind which the calculator writes `14` and a line break; a guess is a line `47*62=71` of the model's
    own. Hard steps are products and differences, and the fault is to guess. One guess in 100 is correct.
    """

    name = "tool"
    pieces = (*Chain.pieces, "[", "]", "error")
    close = "]"
    prompt_tokens, response_tokens = 14, 40
    learning_rate = 1e-4

    def __init__(self) -> None:
        self.toy, self.task = _data_module("toy_task"), _data_module("tool_task")

    def questions(self, n: int, rng: np.random.Generator, exclude: Container = ()) -> list:
        return self.task.tool_questions(n, rng, exclude)

    def prompt(self, question) -> str:
        return self.toy.render_question(question)

    def demonstration(self, question, faults: Faults, rng: np.random.Generator) -> str:
        turns = self.task.solve_in_turns(question, self.toy.Noise(faults.easy, faults.hard, faults.stop), rng)
        answered = (f"{turn.text}[{turn.call}]{self.task.calculate(turn.call)}\n" for turn in turns[:-1])
        return "".join([*answered, turns[-1].text])

    def reply(self, text: str) -> str:
        return self.task.calculate(text.removesuffix(self.close).rpartition("[")[2]) + "\n"

    def is_long(self, question) -> bool:
        return len(question.steps) > 2

    def grade(self, question, text: str) -> bool:
        return self.toy.grade(text, self.toy.answer(question))


FAMILIES = {"chain": Chain, "addition": Addition, "ways": Ways, "tool": Calculator}


def family(name: str) -> Family:
    """The family called `name`; ValueError listing the existing ones."""
    if name not in FAMILIES:
        raise ValueError(f"no task family is called {name!r}; there are {', '.join(FAMILIES)}.")
    return FAMILIES[name]()


def _data_module(name: str) -> ModuleType:
    """A module of this checkout's folder `data`, by path: it is not an installed package, and another one may be called so."""
    package, folder = "exgrpo_lab_data", Path(__file__).resolve().parents[3] / "data"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")
