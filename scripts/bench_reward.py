"""Grading throughput: Math-Verify bare in one process against the reward with 1, 2, ... grading workers.

Responses are made from questions: the gold answer or that of another question, boxed, after the question's text.

    python scripts/bench_reward.py                          # MATH-500 and GSM8K in ../shared/data, else the toy task
    python scripts/bench_reward.py --data mine.jsonl        # GSM8K-like and MATH-like jsonl files
"""

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from math_verify import parse, verify
from rich.console import Console
from rich.table import Table

from verl_ext.rewards import Grader, compute_score, shared_grader

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `data` is not an installed package
SHARED = (ROOT.parent / "shared/data/eval/math.jsonl", ROOT.parent / "shared/data/gsm8k/test.jsonl")


def load_pairs(files: list[Path]) -> list[tuple[str, str]]:
    """(question, gold answer) of every line; GSM8K's gold answer is what follows `####`. Without files, the toy task's."""
    if not files:
        from data.make_toy import make_splits
        from data.toy_task import answer, render_question

        return [(render_question(question), answer(question)) for question in make_splits()[0]]
    pairs = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            gold = str(row["answer"]).rpartition("####")[2].strip()
            pairs.append((row.get("problem") or row["question"], gold))
    return pairs


def make_responses(pairs: list[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """`count` (response, gold answer), about half of them with the answer of another question."""
    rng = random.Random(seed)
    samples = []
    for _ in range(count):
        question, gold = rng.choice(pairs)
        answer = gold if rng.random() < 0.5 else rng.choice(pairs)[1]
        samples.append((f"{question}\nLet us work it out.</think>\nThe answer is $\\boxed{{{answer}}}$.", gold))
    return samples


def bare(samples: list[tuple[str, str]], deadline_s: float) -> float:
    """Responses per second of Math-Verify as its README uses it, with its SIGALRM limits."""
    limit = max(1, round(deadline_s))
    start = time.perf_counter()
    for response, gold in samples:
        solution = response.rpartition("</think>")[2]
        verify(parse(f"${gold}$", parsing_timeout=limit), parse(solution, parsing_timeout=limit), timeout_seconds=limit)
    return len(samples) / (time.perf_counter() - start)


def pooled(samples: list[tuple[str, str]], workers: int, deadline_s: float) -> tuple[float, dict[str, float]]:
    """Responses per second of `compute_score` called from a thread pool, as verl's reward loop does."""

    def score(sample: tuple[str, str]) -> dict:
        response, gold = sample
        return compute_score("bench", response, gold, think_format=True, workers=workers, deadline_s=deadline_s)

    with ThreadPoolExecutor(2 * workers + 2) as threads:
        list(threads.map(score, samples[:20]))
        start = time.perf_counter()
        scores = list(threads.map(score, samples))
        seconds = time.perf_counter() - start
    grader: Grader = shared_grader(workers, deadline_s, 1024)
    grader.close()
    return len(samples) / seconds, {key: sum(s[key] for s in scores) for key in ("acc", "timeout", "error", "precheck")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = [path for path in SHARED if path.is_file()]
    parser.add_argument(
        "--data", type=Path, nargs="+", default=shared, help="jsonl files with problem|question, answer"
    )
    parser.add_argument("--responses", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    args = parser.parse_args()

    samples = make_responses(load_pairs(args.data), args.responses, args.seed)
    bare(samples[:20], args.deadline)
    rates: dict[int, float] = dict.fromkeys((0, *args.workers), 0.0)
    totals: dict[int, dict[str, float]] = {}
    for _ in range(args.rounds):  # in turn, so that a busy machine disturbs all alike; the best round counts
        rates[0] = max(rates[0], bare(samples, args.deadline))
        for workers in args.workers:
            rate, totals[workers] = pooled(samples, workers, args.deadline)
            rates[workers] = max(rates[workers], rate)

    table = Table("workers", "responses/s", "per worker, of bare", "correct", "timeout", "error", "precheck")
    table.add_row("bare", f"{rates[0]:.0f}", "1.00")
    for workers in args.workers:
        counts = [f"{value:.0f}" for value in totals[workers].values()]
        share = rates[workers] / workers / rates[0]
        table.add_row(str(workers), f"{rates[workers]:.0f}", f"{share:.2f}", *counts)
    Console(width=100).print(table)
    if args.json:
        print(json.dumps({"bare": rates[0], **{f"workers_{n}": rates[n] for n in args.workers}}))


if __name__ == "__main__":
    main()
