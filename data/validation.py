"""The questions of validation during training (validation.parquet): the authors' set, or a mix of the benchmarks named.

A row's `__rollout_n__` is its number of samples; verl's validation reads it in place of `rollout.val_kwargs.n`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data.errors import DataError

SAMPLES_COLUMN = "__rollout_n__"

Row = dict[str, Any]


class Part(NamedTuple):
    """What the authors' set has of a benchmark: all its `questions`, each sampled `samples` times."""

    questions: int
    samples: int


# The authors' valid.parquet, where a question is repeated `samples` times: 1,590 questions, 2,259 rows.
AUTHORS = {
    "olympiadbench": Part(675, 1),
    "math500": Part(500, 1),
    "amc23": Part(83, 4),
    "minerva": Part(272, 1),
    "aime24": Part(30, 8),
    "aime25": Part(30, 8),
}


@dataclass(frozen=True)
class AuthorsSet:
    """The paper's set: six benchmarks, all their questions."""

    def check(self, counts: Mapping[str, int]) -> None:
        """Raises DataError unless `counts`, benchmark -> questions, has all six in their sizes."""
        missing = [name for name in AUTHORS if name not in counts]
        if missing:
            raise DataError(f"--validation authors needs {', '.join(missing)} as well (--benchmarks)")
        for name, part in AUTHORS.items():
            if counts[name] != part.questions:
                raise DataError(
                    f"{name}: the source has {counts[name]} questions, the authors' validation set {part.questions}; "
                    "use another source, or --validation mix"
                )

    def choose(self, rows: Mapping[str, Sequence[Row]]) -> list[Row]:
        """One benchmark after the other, with their numbers of samples."""
        return [
            _sampled(row, part.samples) | {SAMPLES_COLUMN: part.samples}
            for name, part in AUTHORS.items()
            for row in rows[name]
        ]


@dataclass(frozen=True)
class Mix:
    """`size` questions of all benchmarks at random, one sample each: every benchmark in proportion."""

    size: int
    seed: int

    def check(self, counts: Mapping[str, int]) -> None:
        """Raises DataError if `counts`, benchmark -> questions, cannot give so many."""
        if not 1 <= self.size <= sum(counts.values()):
            raise DataError(f"--validation-size {self.size}: the benchmarks have {sum(counts.values())} questions")

    def choose(self, rows: Mapping[str, Sequence[Row]]) -> list[Row]:
        """In the benchmarks' order."""
        everything = [row for part in rows.values() for row in part]
        chosen = sorted(random.Random(self.seed).sample(range(len(everything)), self.size))
        return [_sampled(everything[i], 1) for i in chosen]


def composition(name: str | None, size: int | None, seed: int) -> AuthorsSet | Mix | None:
    """What `--validation` and `--validation-size` ask for; None for no set. Raises DataError if they do not fit."""
    if (name == "mix") != (size is not None):
        raise DataError("--validation mix and --validation-size N go together")
    return {None: None, "authors": AuthorsSet(), "mix": Mix(size or 0, seed)}[name]


def _sampled(row: Row, samples: int) -> Row:
    return row | {"extra_info": row["extra_info"] | {"n_samples": samples}}
