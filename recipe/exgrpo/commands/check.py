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

from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from recipe.exgrpo.composition import CompositionError, compose, resolve_target
from verl_ext.preflight import inspect_run
from verl_ext.preflight_report import ERROR, IMPOSSIBLE, NOTE, WARNING, Finding, error

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
    console.print("[red]this run would fail[/]" if failed else "[green]nothing speaks against this run[/]")
    return 2 if failed else 0


def _findings(args: argparse.Namespace) -> Iterator[Finding]:
    try:
        config = compose(resolve_target(args.target))
    except CompositionError as problem:
        yield error(str(problem))
        return
    yield from inspect_run(config)
    if not args.no_verl:
        yield from _verl_findings(config)


def _verl_findings(config: DictConfig) -> Iterator[Finding]:
    """verl's own validation; its asserts and errors become findings."""
    from verl_ext.platform import prepare_environment

    prepare_environment()
    logging.disable(logging.WARNING)  # what verl says while it is imported is not about this run
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, TypeError, KeyError, HydraException) as problem:
        # hydra wraps what a dataclass of verl says into its own exception.
        cause = problem.__cause__ if isinstance(problem, HydraException) and problem.__cause__ else problem
        yield error(f"verl's validate_config: {cause or type(cause).__name__}")
    finally:
        logging.disable(logging.NOTSET)
