"""`exgrpo check [SCRIPT] [key=value ...]`: would this run start, and would it fit? No GPU is needed.

Composes the configuration as the run would, applies our checks and verl's `validate_config`, looks at the parquet files, and
at model and tokenizer where they are on this machine, and estimates memory and disk. SCRIPT is one of scripts/*.sh; its
environment variables (MODEL, TRAIN, RUN, GPUS, ...) apply. Exit code 2 if the run would fail, 0 otherwise.
"""

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from recipe.exgrpo.checks.findings import ERROR, IMPOSSIBLE, NOTE, WARNING, Finding, PreflightError, error
from recipe.exgrpo.checks.preflight import inspect_run
from recipe.exgrpo.checks.verl import validate
from recipe.exgrpo.presets.compose import ROOT, CompositionError, compose, names_script, resolve_target
from verl_ext.platform import prepare_environment

COLOURS = {ERROR: "red", IMPOSSIBLE: "red", WARNING: "yellow", NOTE: "green"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="*", metavar="SCRIPT | key=value", help="a script, hydra overrides, or both")
    parser.add_argument("--no-verl", action="store_true", help="leave out verl's own validation (10 s of imports)")


def run(args: argparse.Namespace) -> int:
    """Print every finding; returns 2 if one of them is an error or impossible."""
    console = Console(soft_wrap=True)
    failed = False
    for finding in _findings(args):
        failed = failed or finding.severity in (ERROR, IMPOSSIBLE)
        console.print(f"[{COLOURS[finding.severity]}]{finding.severity}[/]  {escape(finding.text)}")
    console.print("[red]this run would fail[/]" if failed else "[green]all checks passed[/]")
    return 2 if failed else 0


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    try:
        config = compose(resolve_target(args.target))
    except CompositionError as problem:
        yield error(str(problem))
        return
    # A script runs in the root of the repository, and its paths are relative to that.
    with contextlib.chdir(ROOT) if names_script(args.target) else contextlib.nullcontext():
        yield from inspect_run(config)
        if not args.no_verl:
            yield from _verl_findings(config)


def _verl_findings(config: DictConfig) -> Iterator[Finding]:
    """verl's own validation; what it objects to becomes a finding."""
    prepare_environment()
    logging.disable(logging.WARNING)  # what verl says while it is imported is not about this run
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            validate(config)
    except PreflightError as problem:
        yield error(str(problem))
    finally:
        logging.disable(logging.NOTSET)
