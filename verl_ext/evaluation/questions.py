"""What is to be generated: benchmarks from parquet files, their samples in a fixed order, a seed for each."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.dataset import question_id, read_rows
from verl_ext.evaluation import EvaluationError
from verl_ext.gold import gold_text

MIX = "validation.parquet"  # what prepare_eval.py writes for validation during training; not a benchmark


@dataclass(frozen=True)
class Question:
    """One row of a benchmark. `key` is its content id, with `#2` and so on where the benchmark repeats it."""

    key: str
    prompt: tuple[dict[str, str], ...]
    ground_truth: str
    extra_info: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Questions of one `data_source`, each sampled `n_samples` times; the file has `available` of them."""

    name: str
    questions: tuple[Question, ...]
    n_samples: int
    available: int

    def fingerprint(self) -> str:
        """SHA-256 over all that decides generations and grades."""
        content = [[q.key, q.prompt, q.ground_truth, q.extra_info.get("think_format")] for q in self.questions]
        return hashlib.sha256(json.dumps([self.name, self.n_samples, content]).encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """One generation to make: sample `sample` (from 0) of the question `question` of `benchmark`."""

    benchmark: str
    question: str
    sample: int

    def seed(self, seed: int) -> int:
        """Sampling seed in [0, 2^63): the same for this item in any order, slice or number of processes."""
        content = f"{seed}\0{self.benchmark}\0{self.question}\0{self.sample}"
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") >> 1


def parquet_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named (except the validation mix). Raises EvaluationError if none."""
    files = []
    for path in paths:
        found = sorted(f for f in path.glob("*.parquet") if f.name != MIX) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise EvaluationError(f"--data {path}: there is no parquet file")
        files += found
    return files


def load_benchmarks(files: Sequence[Path], samples: int | None, limit: int | None, seed: int) -> list[Benchmark]:
    """One benchmark for each `data_source`, in the order of the files.

    Args:
        samples: per question; None follows `extra_info.n_samples` (1 where that is missing).
        limit: at most so many questions of each benchmark, drawn at random by `seed`, kept in order.

    Raises:
        EvaluationError: a file that is not in verl's schema, or a benchmark that two files have.
    """
    rows: dict[str, list[dict]] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for row in _read(file):
            name = row["data_source"]
            if origin.setdefault(name, file) != file:
                raise EvaluationError(f"{file}: {name} was already read from {origin[name]}")
            rows.setdefault(name, []).append(row)
    if not rows:
        raise EvaluationError(f"{', '.join(map(str, files))}: there are no questions")
    return [_benchmark(name, found, samples, limit, seed) for name, found in rows.items()]


def items_of(benchmarks: Sequence[Benchmark]) -> list[Item]:
    """Every generation, benchmark by benchmark, question by question."""
    return [Item(b.name, q.key, sample) for b in benchmarks for q in b.questions for sample in range(b.n_samples)]


def chunks_of(total: int, size: int) -> list[range]:
    """Item numbers 0..total-1 cut into chunks of `size`, the unit of generation and of resuming."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def share(chunks: Sequence[range], shards: int) -> list[list[range]]:
    """Chunks dealt to at most `shards` processes, none of them empty."""
    return [part for part in (list(chunks[i::shards]) for i in range(shards)) if part]


def _read(file: Path) -> list[dict]:
    try:
        return read_rows(file)
    except ValueError as problem:
        raise EvaluationError(str(problem)) from None


def _benchmark(name: str, rows: list[dict], samples: int | None, limit: int | None, seed: int) -> Benchmark:
    infos = [row.get("extra_info") or {} for row in rows]
    counts = {int(info.get("n_samples") or 1) for info in infos}
    if samples is None and len(counts) > 1:
        raise EvaluationError(
            f"{name}: extra_info.n_samples differs between questions, {sorted(counts)}; use --samples"
        )
    seen: Counter[str] = Counter()
    questions = []
    for position, (row, info) in enumerate(zip(rows, infos, strict=True)):
        key = question_id(info, default=position)
        seen[key] += 1
        key = key if seen[key] == 1 else f"{key}#{seen[key]}"
        questions.append(Question(key, tuple(row["prompt"]), gold_text(row["reward_model"]["ground_truth"]), info))
    if limit is not None and limit < len(questions):
        chosen = random.Random(f"{seed} {name}").sample(range(len(questions)), limit)
        questions = [questions[i] for i in sorted(chosen)]
    return Benchmark(name, tuple(questions), samples or counts.pop(), len(rows))
