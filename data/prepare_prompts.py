"""Instructions without gold answers -> parquet files for verl, for runs whose reward is a model (section 5.3).

    python data/prepare_prompts.py --source wildchat_if.jsonl --question-key prompt --template plain --held-out 200 \\
        --out data/parquet/wildchat_if.parquet

writes wildchat_if.parquet and wildchat_if_heldout.parquet, without duplicates, each with its manifest. Which questions are held
out depends on their content alone. Exit code 2 and one sentence on bad input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.errors import DataError, exit_with_sentence
from data.output import write_dataset
from data.prompts import load_template, template_names
from data.records import Record, normalise, text_field, verl_row
from data.sources import open_source


def read_prompts(source, key: str) -> tuple[list[Record], int]:
    """Records of distinct, non-empty questions, and the number of rows read."""
    distinct, total = {}, 0
    for where, row in source.rows():
        question = text_field(row, (key,), where).strip()
        if question:
            distinct.setdefault(normalise(question), Record(question, "", total))
        total += 1
    return list(distinct.values()), total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="jsonl, json, csv, parquet, saved datasets folder or hub id")
    parser.add_argument("--split", default="train", help="split of a hub data set or saved folder")
    parser.add_argument("--question-key", required=True, help="column of the instruction, dotted for nested ones")
    parser.add_argument("--data-source", default="instructions", help="name of the data source in the rows")
    parser.add_argument("--template", default="plain", choices=template_names())
    parser.add_argument("--held-out", type=int, default=0, help="questions for validation")
    parser.add_argument("--out", type=Path, required=True, help="the parquet file of the training questions")
    args = parser.parse_args()
    source, template = open_source(args.source, split=args.split), load_template(args.template)
    records, total = read_prompts(source, args.question_key)
    if len(records) <= args.held_out:
        raise DataError(
            f"{args.source}: {len(records)} distinct questions, of which {args.held_out} are to be held out"
        )

    by_content = sorted(records, key=lambda record: record.question_id)
    held_out = {record.index for record in by_content[: args.held_out]}
    parts = {args.out: [r for r in records if r.index not in held_out]}
    if held_out:
        parts[args.out.with_stem(args.out.stem + "_heldout")] = [r for r in records if r.index in held_out]
    for path, part in parts.items():
        split = "train" if path == args.out else "test"
        rows = [verl_row(record, args.data_source, split, template) for record in part]
        manifest = {
            "data_source": args.data_source,
            "template": template.name,
            "source": source.describe(),
            "rows_read": total,
        }
        print(f"{path}: {write_dataset(rows, path, manifest)['rows']} of {total} rows")


if __name__ == "__main__":
    exit_with_sentence(main)
