"""The experience buffer beside the obvious implementation (a dict of lists of tensors, `torch.save`), measured in one run.

    python scripts/bench_buffer.py [--size full|small] [--folder DIR] [--json]

Full size is 202,011 trajectories of about 1,000 tokens over 46,000 questions (the paper's 7B run), and plans of 64 questions
at 1k, 46k and 1M questions; it takes some minutes, 5 GB of memory and 9 GB of disk. Small size (seconds) has the same shape
at a fiftieth, plans at 1k, 2k and 5k questions under the same names, and says nothing about speed. Each measurement runs in
a process of its own. `insert_per_s` is without prompts, `insert_prompted_per_s` with the prompt's ids hashed, as in a run;
that buffer is then measured and saved. Memory is what the process grew by (RSS) while it was filled, over 8 bytes per token.
Saves are flushed to the disk. `load_over_read` compares loading with plainly reading the same files into memory, both with
the page cache dropped, as after a restart; the table has the same with a warm cache.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipe.exgrpo.checkpoint.checkpointer import ExperienceCheckpointer
from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.core.config import QuestionConfig
from recipe.exgrpo.core.sampler import sample_questions

K = 8
PLANNED = 64
NEW = 512
PROMPT_TOKENS = 150
PRINT = {"model": "bench", "tokenizer": "bench", "group_size": K, "policy": "bench"}


@dataclass(frozen=True)
class Size:
    trajectories: int
    questions: int
    tokens: int
    plans: tuple[int, int, int]


SIZES = {
    "full": Size(202_011, 46_000, 1000, (1_000, 46_000, 1_000_000)),
    "small": Size(4_000, 900, 1000, (1_000, 2_000, 5_000)),
}
PLAN_KEYS = ("plan_ms_1k", "plan_ms_46k", "plan_ms_1m")


class Columnar:
    """This project's buffer and checkpoints."""

    def __init__(self):
        self.buffer = ExperienceBuffer(K)
        self.checkpointer = ExperienceCheckpointer(PRINT)
        self.config = QuestionConfig()
        self.record = self.buffer.record

    def add(
        self, question: str, ids: np.ndarray, log_probs: np.ndarray, step: int, prompt: np.ndarray | None = None
    ) -> bool:
        return self.buffer.add(question, Response(ids, log_probs, prompt_ids=prompt), 1.0, step)

    def plan(self, n: int, rng: np.random.Generator) -> list[str]:
        return sample_questions(self.buffer, n, self.config, rng)

    def save(self, folder: Path) -> None:
        self.checkpointer.save(folder, self.buffer, {})

    @staticmethod
    def load(folder: Path):
        return ExperienceCheckpointer(PRINT).load(folder)


class Obvious:
    """What one writes first: a dict of lists of tensors, buckets found by a scan, the whole of it saved every time."""

    def __init__(self):
        import torch  # here, so that its memory is there before the measurement starts

        self.torch = torch
        self.counts, self.experience = {}, defaultdict(list)

    def record(self, question: str, count: int) -> None:
        self.counts[question] = count

    def add(
        self, question: str, ids: np.ndarray, log_probs: np.ndarray, step: int, prompt: np.ndarray | None = None
    ) -> bool:
        torch = self.torch
        ids = torch.from_numpy(ids.astype(np.int64))  # as verl has its responses
        stored = self.experience[question]
        if any(torch.equal(ids, other["ids"]) for other in stored):
            return False
        log_probs = torch.from_numpy(log_probs.copy())
        stored.append({"ids": ids, "log_probs": log_probs, "reward": 1.0, "birth_step": step, "use_count": 0})
        return True

    def plan(self, n: int, rng: np.random.Generator) -> list[str]:
        buckets = defaultdict(list)
        for question, count in self.counts.items():
            if 0 < count < K and self.experience[question]:
                buckets[count].append(question)
        weights = {k: np.exp(-((k - K / 2) ** 2) / 2) for k in buckets}
        total = sum(weights.values())
        counts = rng.multinomial(n, [w / total for w in weights.values()])
        drawn = [
            rng.choice(buckets[k], min(c, len(buckets[k])), replace=False) for k, c in zip(weights, counts, strict=True)
        ]
        return [question for questions in drawn for question in questions]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with open(folder / "experience.pt", "wb") as file:
            self.torch.save({"counts": self.counts, "experience": dict(self.experience)}, file)
            os.fsync(file.fileno())

    @staticmethod
    def load(folder: Path):
        import torch

        return torch.load(folder / "experience.pt", weights_only=True)


KINDS = {"columnar": Columnar, "obvious": Obvious}


def stream(size: Size, n: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """`n` distinct trajectories of about `size.tokens` tokens: question id, int32 ids, float32 log-probs."""
    rng = np.random.default_rng(seed)
    longest = size.tokens * 3 // 2
    ids, log_probs = rng.integers(0, 150_000, 2 * longest).astype(np.int32), -rng.exponential(0.5, 2 * longest)
    log_probs = log_probs.astype(np.float32)
    lengths = rng.integers(size.tokens // 2, longest, n).tolist()
    for i, (length, question) in enumerate(zip(lengths, rng.integers(0, size.questions, n).tolist(), strict=True)):
        ids[i % longest] = i
        yield f"{question:032x}", ids[i % longest :][:length], log_probs[i % longest :][:length]


def measure_plans(kind: str, size: Size, repeats: int = 300, seconds: float = 12) -> dict[str, float]:
    """Median milliseconds of planning 64 questions (`sample_questions`) in buffers of several sizes.

    The sizes take turns, so that a machine that is faster at one moment than at another is so for all of them.
    """
    buffers, rng = [filled(kind, questions) for questions in size.plans], np.random.default_rng(0)
    for buffer in buffers * 3:
        buffer.plan(PLANNED, rng)
    start, times = time.perf_counter(), []
    while len(times) < repeats and (len(times) < 5 or time.perf_counter() - start < seconds):
        times.append([timed(lambda b=buffer: b.plan(PLANNED, rng)) for buffer in buffers])
    return {key: 1e3 * statistics.median(t) for key, t in zip(PLAN_KEYS, zip(*times, strict=True), strict=True)}


def filled(kind: str, questions: int):
    """A buffer of so many questions with one short trajectory each."""
    buffer, rng = KINDS[kind](), np.random.default_rng(0)
    ids, log_probs = np.arange(4, dtype=np.int32), -np.ones(4, np.float32)
    for i, count in enumerate(rng.integers(1, K, questions).tolist()):
        question = f"{i:032x}"
        buffer.record(question, count)
        buffer.add(question, ids, log_probs, 0)
    return buffer


def insert(buffer, size: Size, prompt: np.ndarray | None = None) -> tuple[float, int]:
    """Fill a buffer with the whole stream; returns trajectories per second, and the tokens stored."""
    seconds, tokens = 0.0, 0
    for question, ids, log_probs in stream(size, size.trajectories, 1):
        start = time.perf_counter()
        buffer.record(question, 4)
        added = buffer.add(question, ids, log_probs, 0, prompt)
        seconds += time.perf_counter() - start
        tokens += len(ids) * added
    return size.trajectories / seconds, tokens


def measure_inserts(kind: str, size: Size) -> dict[str, float]:
    """Insert rate without prompts."""
    return {"insert_per_s": insert(KINDS[kind](), size)[0]}


def measure_storage(kind: str, size: Size, folder: Path) -> dict[str, float]:
    """Insert rate with prompts, memory, full and incremental saves; checkpoints stay in `folder`."""
    process, buffer = psutil.Process(), KINDS[kind]()
    prompt = np.arange(PROMPT_TOKENS, dtype=np.int32)
    next(stream(size, 1, 0))
    before = process.memory_info().rss
    rate, tokens = insert(buffer, size, prompt)
    found = {
        "insert_prompted_per_s": rate,
        "memory_over_payload": (process.memory_info().rss - before) / (8 * tokens),
    }
    full, full_bytes = saved(buffer, folder / "global_step_0")
    parts = []
    for step in range(1, 4):
        for question, ids, log_probs in stream(size, NEW, 100 + step):
            buffer.add(question, ids + step, log_probs, step, prompt)
        parts.append(saved(buffer, folder / f"global_step_{step}"))
        if kind == "obvious" and step > 1:
            shutil.rmtree(folder / f"global_step_{step - 1}")
    found |= {
        "full_save_s": full,
        "full_save_gb": full_bytes / 1e9,
        "incremental_save_s": statistics.median(seconds for seconds, _ in parts),
        "incremental_save_mb": statistics.median(written for _, written in parts) / 1e6,
    }
    found["incremental_time_ratio"] = found["incremental_save_s"] / full
    found["incremental_bytes_ratio"] = found["incremental_save_mb"] * 1e6 / full_bytes
    return found


def measure_load(kind: str, folder: Path, repeats: int = 3) -> dict[str, float]:
    """Seconds to load the last checkpoint, and over those to read its files into memory; with a cold and a warm cache."""
    last = max(folder.iterdir(), key=lambda path: path.name)
    files = sorted(path for path in last.rglob("*") if path.is_file())
    KINDS[kind].load(last)  # what loading imports is not loading
    found = {}
    for suffix, cold in (("", True), ("_warm", False)):
        reads, loads = [], []
        for _ in range(repeats):
            set_cache(files, cold)
            reads.append(timed(lambda: [path.read_bytes() for path in files]))
            set_cache(files, cold)
            loads.append(timed(lambda: KINDS[kind].load(last)))
        load, read = statistics.median(loads), statistics.median(reads)
        found |= {f"load_over_read{suffix}": load / read, f"load_s{suffix}": load, f"read_s{suffix}": read}
    return found


def set_cache(files: list[Path], cold: bool) -> None:
    """Drop the files from the page cache, or bring them into it."""
    for path in files:
        with open(path, "rb") as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not cold and file.read(1 << 24):
                pass


def saved(buffer, folder: Path) -> tuple[float, int]:
    """Seconds of a save, and the bytes it wrote (files that it shares with an earlier checkpoint excluded)."""
    seconds = timed(lambda: buffer.save(folder))
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return seconds, sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = call()
    seconds = time.perf_counter() - start
    del kept  # freed after the clock has stopped
    return seconds


def alone(function: Callable, *args):
    """Run in a fresh process, so that one measurement's memory is not another's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure(kind: str, size: Size, folder: Path, console: Console) -> dict[str, float]:
    """All figures of one implementation."""
    with console.status(f"{kind}: plans"):
        found = alone(measure_plans, kind, size)
    with console.status(f"{kind}: inserting and saving"):
        found |= alone(measure_inserts, kind, size)
        found |= alone(measure_storage, kind, size, folder)
    with console.status(f"{kind}: loading"):
        found |= alone(measure_load, kind, folder)
    return found


KEYS = (
    "insert_per_s", "insert_prompted_per_s", *PLAN_KEYS, "memory_over_payload", "incremental_time_ratio",
    "incremental_bytes_ratio", "load_over_read",
)  # fmt: skip
AIMS = {
    "insert_per_s": ">= 20,000", "insert_prompted_per_s": ">= 20,000",
    "plan_ms_1k": "< 1", "plan_ms_46k": "< 1", "plan_ms_1m": "< 1 and <= 1.5 x 1k",
    "memory_over_payload": "<= 1.05", "incremental_time_ratio": "<= 0.02", "incremental_bytes_ratio": "<= 0.02",
    "load_over_read": "<= 2",
}  # fmt: skip


def show(console: Console, ours: dict[str, float], obvious: dict[str, float]) -> None:
    """Every figure side by side, with the aims of issue 4."""
    table = Table("", "columnar", "obvious", "obvious / columnar", "aim")
    for key in ours:
        cells = (f"{found[key]:,.4g}" if found[key] < 1e4 else f"{found[key]:,.0f}" for found in (ours, obvious))
        table.add_row(key, *cells, f"{obvious[key] / ours[key]:,.3g}", AIMS.get(key, ""))
    table.add_row(
        "plan_ms_1m / plan_ms_1k", *(f"{f['plan_ms_1m'] / f['plan_ms_1k']:.3g}" for f in (ours, obvious)), "", "<= 1.5"
    )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    console, found = Console(stderr=args.json), {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found[kind] = measure(kind, SIZES[args.size], Path(folder), console)
    show(console, found["columnar"], found["obvious"])
    if args.json:
        ours, obvious = ({key: values[key] for key in KEYS} for values in found.values())
        print(json.dumps(ours | {"baseline": obvious}))


if __name__ == "__main__":
    main()
