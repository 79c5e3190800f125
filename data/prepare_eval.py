"""The paper's benchmarks (and GSM8K) -> one parquet file each, with options shuffled and samples per question set.

    python data/prepare_eval.py --benchmarks aime24,aime25,amc23,math500,minerva,olympiadbench \\
        --source ../shared/data/eval --template thought --validation authors --out data/parquet/eval
    python data/prepare_eval.py --benchmarks aime24,math500 --source DIR --out DIR --validation mix --validation-size 200

`--source DIR` holds one file per benchmark (aime24.jsonl or aime.jsonl, ...); without it the hub is asked. Only questions
whose gold answer is a placeholder (`proof`, `None`, `N/A`, ...) are dropped, which none of the six mathematics benchmarks has;
duplicates and gold answers that do not grade as equal to themselves are reported.
`--validation` also writes validation.parquet, for validation during training: `authors` is the paper's set, 2,259
samples of the six benchmarks above (AMC four times, AIME eight times); `mix` is `--validation-size` questions of the
benchmarks named, in proportion. Exit code 2 and one sentence on bad input, or where a set cannot have its size.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data import checks
from data.catalog import QuestionSet, benchmarks
from data.errors import DataError, exit_with_sentence
from data.output import write_dataset
from data.prompts import PromptTemplate, load_template, template_names
from data.records import Record, verl_row
from data.sources import SUFFIXES, HubSource, LocalSource, open_source
from data.validation import composition
from verl_ext.rewards import is_placeholder

SHUFFLE_SEED = 0
EXAMPLES = 50


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmarks", required=True, help=f"comma-separated: {','.join(benchmarks(SHUFFLE_SEED))}")
    parser.add_argument("--source", type=Path, help="folder with a file per benchmark; default: the hub")
    parser.add_argument("--template", default="thought", choices=template_names())
    parser.add_argument("--out", type=Path, required=True, help="folder for <benchmark>.parquet")
    parser.add_argument("--seed", type=int, default=SHUFFLE_SEED, help="of the order of options and the validation mix")
    parser.add_argument("--validation", choices=("authors", "mix"), help="also write validation.parquet")
    parser.add_argument("--validation-size", type=int, help="questions of --validation mix")
    parser.add_argument("--workers", type=int, default=2, help="processes that grade gold answers")
    return parser.parse_args()


def chosen_benchmarks(names: str, seed: int) -> list[QuestionSet]:
    """The named benchmarks, each once. Raises DataError for an unknown name."""
    known = benchmarks(seed)
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in chosen:
        if name not in known:
            raise DataError(f"--benchmarks: {name!r} is not one of {', '.join(known)}")
    if not chosen:
        raise DataError("--benchmarks names none")
    return [known[name] for name in chosen]


def find_source(benchmark: QuestionSet, folder: Path | None) -> LocalSource | HubSource:
    """The benchmark's file or saved folder in `folder`, or the hub. Raises DataError if the folder lacks it."""
    if folder is None:
        return HubSource(benchmark.hub_id, benchmark.config, benchmark.split)
    for name in benchmark.local_names:
        for suffix in (*SUFFIXES, ""):
            path = folder / (name + suffix)
            if path.exists():
                return open_source(str(path), split=benchmark.split)
    names = ", ".join(benchmark.local_names)
    raise DataError(f"{folder}: no file for {benchmark.data_source} (one of {names} with {', '.join(SUFFIXES)})")


def read_benchmark(benchmark: QuestionSet, source: LocalSource | HubSource) -> tuple[list[Record], int]:
    """Every question with a gold answer, and how many have a placeholder instead.

    Raises DataError for a row without a question or an answer: a benchmark is not trimmed.
    """
    records, placeholders = [], 0
    for index, (where, row) in enumerate(source.rows()):
        question, answer = (text.strip() for text in benchmark.read(row, where))
        if not question or not answer:
            raise DataError(f"{where}: the {'answer' if question else 'question'} is empty")
        if is_placeholder(answer):
            placeholders += 1
        else:
            records.append(Record(question, answer, index))
    if not records:
        rows = "only placeholders for gold answers" if placeholders else "no rows"
        raise DataError(f"{benchmark.data_source}: the source has {rows}")
    return records, placeholders


def prepare(
    benchmark: QuestionSet,
    source: LocalSource | HubSource,
    records: list[Record],
    placeholders: int,
    args: argparse.Namespace,
    template: PromptTemplate,
) -> list[dict[str, Any]]:
    """Write one benchmark and its manifest, which says that `placeholders` rows were dropped; returns its rows."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(benchmark.data_source, total=len({record.answer for record in records}))
        status = checks.check_golds(
            (record.answer for record in records),
            benchmark.data_source,
            args.workers,
            lambda n: progress.advance(task, n),
        )
    repeated = [i for i, count in Counter(record.question_id for record in records).items() if count > 1]
    manifest = {
        "data_source": benchmark.data_source,
        "template": template.name,
        "source": source.describe(),
        "n_samples": benchmark.n_samples,
        "seed": args.seed,
        "dropped": {"placeholder answer": placeholders} if placeholders else {},
        "repeated_questions": repeated,
        "gold_answers": checks.gold_report(status, EXAMPLES),
    }
    rows = [verl_row(record, benchmark.data_source, "test", template, benchmark.n_samples) for record in records]
    report(write_dataset(rows, args.out / f"{benchmark.data_source}.parquet", manifest))
    return rows


def write_validation(rows: list[dict[str, Any]], args: argparse.Namespace, template: PromptTemplate) -> None:
    """Write validation.parquet and its manifest."""
    samples: Counter[str] = Counter()
    for row in rows:
        samples[row["data_source"]] += row["extra_info"]["n_samples"]
    manifest = {
        "template": template.name,
        "composition": args.validation,
        "seed": args.seed,
        "questions": dict(Counter(row["data_source"] for row in rows)),
        "samples": dict(samples),
    }
    write_dataset(rows, args.out / "validation.parquet", manifest)
    print(f"validation.parquet: {len(rows)} questions, {samples.total()} samples {manifest['samples']}")


def report(manifest: dict[str, Any]) -> None:
    """The counts, for the person who waited."""
    print(f"{manifest['file']}: {manifest['rows']} questions, {manifest['n_samples']} samples each")
    for reason, count in manifest["dropped"].items():
        print(f"  dropped {count}: {reason}")
    for kind, answers in manifest["gold_answers"]["answers"].items():
        print(f"  gold answers {kind}: {answers}")
    if manifest["repeated_questions"]:
        print(f"  {len(manifest['repeated_questions'])} questions occur more than once")


def main() -> None:
    args = parse_arguments()
    chosen = chosen_benchmarks(args.benchmarks, args.seed)
    template = load_template(args.template)
    if args.source is not None and not args.source.is_dir():
        raise DataError(f"--source {args.source}: there is no such folder")
    wanted = composition(args.validation, args.validation_size, args.seed)
    sources = [find_source(benchmark, args.source) for benchmark in chosen]
    # All are read before the first is graded and written: what is wrong with one must not cost minutes.
    records = [read_benchmark(benchmark, source) for benchmark, source in zip(chosen, sources, strict=True)]
    if wanted:
        wanted.check({benchmark.data_source: len(found) for benchmark, (found, _) in zip(chosen, records, strict=True)})
    rows = {
        benchmark.data_source: prepare(benchmark, source, *found, args, template)
        for benchmark, source, found in zip(chosen, sources, records, strict=True)
    }
    if wanted:
        write_validation(wanted.choose(rows), args, template)


if __name__ == "__main__":
    exit_with_sentence(main)
