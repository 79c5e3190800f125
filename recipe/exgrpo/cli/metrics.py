"""`exgrpo metrics [WORD]`: what the metrics of a run mean, one sentence each."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from recipe.exgrpo.report.glossary import OURS, VERL, markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="only metrics whose name or meaning has it")
    parser.add_argument("--markdown", action="store_true", help="print docs/metrics.md")


def run(args: argparse.Namespace) -> int:
    """Print the sentences; returns 1 when none is about the word."""
    if args.markdown:
        sys.stdout.write(markdown())
        return 0
    word = args.word.lower()
    found = {name: text for name, text in (OURS | VERL).items() if word in f"{name} {text}".lower()}
    table = Table("metric", "meaning")
    for name, text in found.items():
        table.add_row(name, text)
    Console().print(table if found else f"no metric is about {args.word!r}")
    return 0 if found else 1
