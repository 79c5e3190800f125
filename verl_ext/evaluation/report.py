"""From generations to `results.json`: nothing in it depends on time, machine load or interruptions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_ext.evaluation.oat_like import oat_like_score
from verl_ext.evaluation.published import Published
from verl_ext.evaluation.questions import Benchmark
from verl_ext.evaluation.statistics import PASSED, summarise
from verl_ext.evaluation.tables import markdown, result_tables
from verl_ext.files import write_atomically
from verl_ext.rewards import Grader

BATCH = 1000  # responses in memory at once
EXAMPLES = 20  # responses listed of each benchmark on which two graders disagree


def figures(benchmarks: Sequence[Benchmark], rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Benchmark -> figures, see `statistics.summarise`. `rows` are all generations, in order."""
    kept: dict[str, list[dict]] = {benchmark.name: [] for benchmark in benchmarks}
    for row in rows:
        kept[row["benchmark"]].append({key: value for key, value in row.items() if key != "text"})
    return {b.name: _figures(b, kept[b.name]) for b in benchmarks}


def averages(benchmarks: Mapping[str, Mapping[str, Any]], published: Published) -> dict[str, float]:
    """Mean over the benchmarks of each published group of which all are there, as a fraction."""
    groups = published.complete_groups(benchmarks)
    return {group: fmean(benchmarks[name]["mean"] for name in published.groups[group]) for group in groups}


def oat_like(
    benchmarks: Sequence[Benchmark], rows: Iterable[Mapping[str, Any]], grader: Grader
) -> dict[str, dict[str, Any]]:
    """Benchmark -> mean under the other grader, and the responses that only one of the two accepts."""
    golds = {(b.name, q.key): q.ground_truth for b in benchmarks for q in b.questions}

    def grade(row: Mapping[str, Any]) -> tuple[dict, float]:
        gold = golds[row["benchmark"], row["question"]]
        about = {key: row[key] for key in ("benchmark", "question", "sample")}
        about |= {"gold": gold, "extracted": row["score"]["extracted"], "training": row["score"]["score"]}
        truncated = row["finish_reason"] == "length"
        return about, oat_like_score(row["benchmark"], row["text"], gold, grader, truncated)

    graded: dict[str, list[tuple[dict, float]]] = {b.name: [] for b in benchmarks}
    waiting = iter(rows)
    with ThreadPoolExecutor(2 * grader.workers) as threads:
        while batch := list(islice(waiting, BATCH)):  # `map` alone would read every text into memory
            for about, score in threads.map(grade, batch):
                graded[about.pop("benchmark")].append((about, score))
    return {name: _difference(found) for name, found in graded.items()}


def write(folder: Path, results: dict[str, Any], published: Published) -> list[Path]:
    """Write results.json and results.md, each complete or not at all; returns their paths."""
    contents = {"json": json.dumps(results, indent=1) + "\n", "md": markdown(result_tables(results, published))}
    for kind, content in contents.items():
        write_atomically(folder / f"results.{kind}", content)
    return [folder / f"results.{kind}" for kind in contents]


def _figures(benchmark: Benchmark, rows: list[dict]) -> dict[str, Any]:
    scores: dict[str, list[float]] = {question.key: [] for question in benchmark.questions}
    for row in rows:
        scores[row["question"]].append(row["score"]["score"])
    return summarise(
        list(scores.values()),
        [row["tokens"] for row in rows],
        [row["finish_reason"] == "length" for row in rows],
        available=benchmark.available,
        format_kept=fmean(row["score"]["format_ok"] for row in rows),
        grading_timeouts=sum(row["score"]["timeout"] > 0 for row in rows),
        grading_errors=sum(row["score"]["error"] > 0 for row in rows),
    )


def _difference(graded: list[tuple[dict, float]]) -> dict[str, Any]:
    """Every question has as many samples as the others, so the mean over responses is the mean over questions."""
    differing = [
        about | {"oat_like": score} for about, score in graded if (about["training"] > PASSED) != (score > PASSED)
    ]
    return {
        "mean": fmean(score for _, score in graded),
        "only_training": sum(about["training"] > PASSED for about in differing),
        "only_oat_like": sum(about["oat_like"] > PASSED for about in differing),
        "examples": differing[:EXAMPLES],
    }
