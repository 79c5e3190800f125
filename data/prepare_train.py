"""Questions with gold answers -> a parquet file for verl, with duplicates, placeholders and ungradable answers taken out.

    python data/prepare_train.py --dataset gsm8k --source ../shared/data/gsm8k/train.jsonl --template thought \\
        --eval-dir ../shared/data/eval --out data/parquet/gsm8k.parquet
    python data/prepare_train.py --dataset custom --source mine.csv --question-key problem --answer-key result \\
        --template plain --out data/parquet/mine.parquet

Without `--source` the data set is loaded from the Hugging Face hub. The manifest beside the parquet file says what was
dropped and why. Exit code 2 and one sentence on bad input.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data import checks
from data.catalog import TRAINING_SETS, QuestionSet, by_keys
from data.errors import DataError, exit_with_sentence
from data.output import write_dataset, write_traces
from data.prompts import load_template, template_names
from data.records import Record, lookup, normalise, text_field, verl_row
from data.sources import open_source
from verl_ext.rewards import is_placeholder

EXAMPLES = 50  # of each kind listed in the manifest


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=[*TRAINING_SETS, "custom"])
    parser.add_argument("--source", help="jsonl, json, csv, parquet, saved datasets folder or hub id; default: the hub")
    parser.add_argument("--question-key", help="custom: column of the question, dotted for nested ones")
    parser.add_argument("--answer-key", help="custom: column of the gold answer")
    parser.add_argument("--data-source", default="custom", help="custom: name by which the reward picks its rule")
    parser.add_argument("--config", help="hub configuration, if not the data set's usual one")
    parser.add_argument("--split", help="split of a hub data set or saved folder, if not the data set's usual one")
    parser.add_argument("--revision", help="hub revision (a commit) to pin")
    parser.add_argument("--template", default="thought", choices=template_names())
    parser.add_argument("--out", type=Path, required=True, help="the parquet file")
    parser.add_argument(
        "--traces", type=Path, metavar="FILE", help="also write the data set's own solutions, as parquet"
    )
    parser.add_argument("--trace-key", help="custom: column of the solution, for --traces")
    parser.add_argument("--max-prompt-tokens", type=int, default=1024)
    parser.add_argument("--tokenizer", help="counts prompt tokens exactly; without it they are estimated")
    parser.add_argument("--eval-dir", type=Path, help="evaluation files to report contamination with")
    parser.add_argument("--workers", type=int, default=2, help="processes that grade gold answers")
    return parser.parse_args()


def question_set(args: argparse.Namespace) -> QuestionSet:
    """The chosen data set. Raises DataError for keys that do not go with it."""
    keys = (args.question_key, args.answer_key)
    if args.traces and args.dataset != "custom" and TRAINING_SETS[args.dataset].trace is None:
        raise DataError(f"--traces: {args.dataset} has no solutions")
    if args.traces and args.dataset == "custom" and not args.trace_key:
        raise DataError("--traces of --dataset custom needs --trace-key")
    if args.dataset != "custom":
        if any((*keys, args.trace_key)):
            raise DataError("--question-key, --answer-key and --trace-key go with --dataset custom")
        return TRAINING_SETS[args.dataset]
    if not all(keys) or not args.source:
        raise DataError("--dataset custom needs --source, --question-key and --answer-key")
    read = by_keys((args.question_key,), (args.answer_key,))
    return QuestionSet(args.data_source, args.source, read, trace=args.trace_key)


def read_records(chosen: QuestionSet, rows: Iterator, dropped: Counter) -> tuple[list[Record], int]:
    """Records with a question and an answer, and the number of rows read; the others are counted in `dropped`."""
    records, total = [], 0
    for index, (where, row) in enumerate(track(rows, "reading", console=Console(stderr=True))):
        total += 1
        reason = chosen.drop(row)
        if reason is None:
            question, answer = (text.strip() for text in chosen.read(row, where))
            reason = _missing(question, answer)
        if reason is None:
            records.append(Record(question, answer, index, _trace(chosen.trace, row, where)))
        else:
            dropped[reason] += 1
    return records, total


def _trace(key: str | None, row: Any, where: str) -> str:
    """The row's written solution, "" where it has none."""
    if key is None:
        return ""
    try:
        lookup(row, key)
    except KeyError:
        return ""
    return text_field(row, (key,), where).strip()


def _missing(question: str, answer: str) -> str | None:
    """Why there is no question with an answer; None if there is."""
    if not question or not answer:
        return "empty answer" if question else "empty question"
    return "placeholder answer" if is_placeholder(answer) else None


def without_duplicates(records: list[Record], dropped: Counter) -> tuple[list[Record], list[dict[str, Any]]]:
    """The first record of each question. Later ones are counted; those with another answer are listed."""
    first: dict[str, Record] = {}
    conflicts = []
    for record in records:
        kept = first.setdefault(normalise(record.question), record)
        if kept is record:
            continue
        same = normalise(kept.answer) == normalise(record.answer)
        dropped["duplicate" if same else "duplicate with another answer"] += 1
        if not same:
            conflicts.append({"kept": kept.index, "dropped": record.index, "answers": [kept.answer, record.answer]})
    return list(first.values()), conflicts


def with_gradable_answers(
    records: list[Record], data_source: str, workers: int, dropped: Counter
) -> tuple[list[Record], dict[str, Any]]:
    """Records whose gold answer the reward grades as equal to itself; the others could never be answered."""
    distinct = len({record.answer for record in records})
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("grading gold answers", total=distinct)
        status = checks.check_golds(
            (r.answer for r in records), data_source, workers, lambda n: progress.advance(task, n)
        )
    usable = (checks.OK, checks.AS_TEXT)
    for record in records:
        if status[record.answer] not in usable:
            dropped[f"answer {status[record.answer]}"] += 1
    return [r for r in records if status[r.answer] in usable], checks.gold_report(status, EXAMPLES)


def within_limit(
    records: list[Record], args: argparse.Namespace, dropped: Counter
) -> tuple[list[Record], dict[str, Any]]:
    """Records whose prompt is at most `--max-prompt-tokens` long."""
    template = load_template(args.template)
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    lengths = checks.prompt_tokens(records, template, tokenizer)
    kept = [record for record, length in zip(records, lengths, strict=True) if length <= args.max_prompt_tokens]
    dropped["prompt over the limit"] += len(records) - len(kept)
    counted_by = args.tokenizer or f"estimate, {checks.CHARACTERS_PER_TOKEN} characters per token"
    longest = max((length for length in lengths if length <= args.max_prompt_tokens), default=0)
    return kept, {"max_tokens": args.max_prompt_tokens, "counted_by": counted_by, "longest_kept": longest}


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a folder or the hub. Raises DataError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(f"--tokenizer {name}: cannot be loaded ({str(error).splitlines()[0]})") from None


def main() -> None:
    args = parse_arguments()
    chosen = question_set(args)
    chosen = replace(chosen, config=args.config or chosen.config, split=args.split or chosen.split)
    source = open_source(args.source or chosen.hub_id, chosen.config, chosen.split, args.revision)
    evaluation = checks.evaluation_questions(args.eval_dir) if args.eval_dir else {}

    dropped: Counter = Counter()
    records, total = read_records(chosen, source.rows(), dropped)
    records, conflicts = without_duplicates(records, dropped)
    records, limit = within_limit(records, args, dropped)
    records, gold = with_gradable_answers(records, chosen.data_source, args.workers, dropped)
    if not records:
        raise DataError(f"{args.source or chosen.hub_id}: no question is left of {total} rows ({dict(dropped)})")

    template = load_template(args.template)
    manifest = {
        "data_source": chosen.data_source,
        "template": template.name,
        "source": source.describe(),
        "rows_read": total,
        "dropped": dict(sorted((reason, count) for reason, count in dropped.items() if count)),
        "conflicting_duplicates": conflicts[:EXAMPLES],
        "prompt": limit,
        "gold_answers": gold,
        "contamination": checks.contamination(records, evaluation),
    }
    rows = [verl_row(record, chosen.data_source, "train", template) for record in records]
    if args.traces:
        manifest["traces"] = {
            "file": str(args.traces),
            "rows": write_traces(records, args.traces, f"{args.dataset}-own"),
        }
    report(write_dataset(rows, args.out, manifest))


def report(manifest: dict[str, Any]) -> None:
    """The counts, for the person who waited."""
    print(f"{manifest['file']}: {manifest['rows']} of {manifest['rows_read']} rows, template {manifest['template']}")
    if "traces" in manifest:
        print(f"  {manifest['traces']['rows']} traces: {manifest['traces']['file']}")
    for reason, count in manifest["dropped"].items():
        print(f"  dropped {count}: {reason}")
    for name, found in manifest["contamination"].items():
        counts = ", ".join(f"{len(ids)} {kind}" for kind, ids in found.items())
        print(f"  contamination with {name}: {counts}")


if __name__ == "__main__":
    exit_with_sentence(main)
