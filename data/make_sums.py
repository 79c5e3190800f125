"""Sums of two numbers below 100, as questions for a small pretrained model: parquet for verl, made offline.

    python data/make_sums.py --out data/parquet      # sums_train.parquet, sums_test.parquet and their manifests

For SmolLM2-135M GSM8K is too hard to learn from within a hundred steps; this it solves now and then. The same numbers give the
same files. Exit code 2 and one sentence on bad input.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.errors import DataError, exit_with_sentence
from data.output import write_dataset
from data.prompts import load_template, template_names
from data.records import Record, verl_row

TOP = 100  # addends are 1 .. TOP - 1


def make_records(n_train: int, n_test: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and test questions, all distinct. Raises DataError when there are not as many sums."""
    sums = (TOP - 1) ** 2
    if n_train < 1 or n_test < 1 or n_train + n_test > sums:
        raise DataError(
            f"--train and --test must be at least 1 and together at most {sums}; got {n_train} and {n_test}"
        )
    order = np.random.default_rng(seed).permutation(sums)[: n_train + n_test].tolist()
    pairs = [(1 + i // (TOP - 1), 1 + i % (TOP - 1)) for i in order]
    records = [Record(f"What is {a} + {b}?", str(a + b), i) for i, (a, b) in enumerate(pairs)]
    return records[:n_train], records[n_train:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the two parquet files")
    parser.add_argument("--train", type=int, default=2000, help="training questions (%(default)s)")
    parser.add_argument("--test", type=int, default=128, help="test questions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which sums are in which file (%(default)s)")
    parser.add_argument("--template", default="plain", choices=template_names())
    args = parser.parse_args()
    template = load_template(args.template)
    for split, records in zip(("train", "test"), make_records(args.train, args.test, args.seed), strict=True):
        rows = [verl_row(record, "sums", split, template) for record in records]
        manifest = {"data_source": "sums", "template": template.name, "seed": args.seed}
        write_dataset(rows, args.out / f"sums_{split}.parquet", manifest)
        print(f"{args.out}/sums_{split}.parquet: {len(rows)} rows, template {template.name}")


if __name__ == "__main__":
    exit_with_sentence(main)
