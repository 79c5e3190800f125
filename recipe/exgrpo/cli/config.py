"""`exgrpo config [SCRIPT] [key=value ...]`: how a run's settings differ from the paper's, without starting anything.

SCRIPT is one of scripts/*.sh; its environment variables (MODEL, RUN, GPUS, TINY, ...) apply. Settings that the paper does not
name are compared with the shipped defaults. `--full` prints the whole resolved configuration as YAML instead.
"""

import argparse
import sys

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipe.exgrpo.presets.compose import CompositionError, compose, resolve_target
from recipe.exgrpo.presets.paper_settings import differences, expected_settings, flatten, load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="*", metavar="SCRIPT | key=value", help="a script, hydra overrides, or both")
    parser.add_argument("--full", action="store_true", help="print the resolved configuration as YAML")


def run(args: argparse.Namespace) -> int:
    """Print the comparison; returns 2 when the target makes no configuration."""
    try:
        config = compose(resolve_target(args.target))
    except CompositionError as error:
        Console(stderr=True).print(f"[red]exgrpo config:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    if args.full:
        sys.stdout.write(OmegaConf.to_yaml(config, resolve=True))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 200)  # in a pipe, keys in one piece are for grep
    console.print(_heading(config))
    console.print(_paper_table(config))
    console.print(_other_table(config))
    return 0


def _heading(config: DictConfig) -> str:
    preset = config.preset
    names = [str(name) for name in (preset.backbone or "no backbone preset", preset.method, preset.ablation) if name]
    change = load_table()["ablations"].get(preset.ablation, {})
    changed = ", ".join(f"{key}={value}" for key, value in change.items() if key != "published")
    return escape(" / ".join(names) + (f": {changed}" if changed else ""))


def _paper_table(config: DictConfig) -> Table:
    table = _table("different from the paper", "key", "paper", "here", "why")
    for found in differences(config):
        _add(table, found.key, found.paper, found.here, found.why or "")
    if not table.row_count:
        _add(table, "none", "", "", "")
    return table


def _other_table(config: DictConfig) -> Table:
    """Settings that the paper does not name and that presets or overrides changed."""
    named = expected_settings(load_table(), config.preset)
    here, shipped = (flatten(OmegaConf.to_container(c, resolve=True)) for c in (config, compose()))
    table = _table("not in the paper, changed here", "key", "default", "here")
    for key, value in here.items():
        if key not in named and value != shipped.get(key):
            _add(table, key, shipped.get(key), value)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # a shortened key is of no use
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(escape(str(cell)) for cell in cells))
