"""`exgrpo config [SCRIPT] [key=value ...]`: whose a run's settings are, without starting anything.

SCRIPT is one of scripts/*.sh; its environment variables (MODEL, RUN, GPUS, TINY, ...) apply. Three columns: what the paper's
text says and where, what the authors' released script has, and this run. Settings that all three name with one value are only
counted, unless `--all` is given; settings that neither names are compared with the shipped defaults. `--full` prints the whole
resolved configuration as YAML instead.
"""

import argparse
import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipe.exgrpo.presets.compose import CompositionError, compose, resolve_target
from recipe.exgrpo.presets.paper_settings import SCRIPT, UNSAID, Row, compare, flatten, load_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="*", metavar="SCRIPT | key=value", help="a script, hydra overrides, or both")
    parser.add_argument("--all", action="store_true", help="also the settings that are the same in all three columns")
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
    rows = sorted(compare(config), key=lambda row: not row.differs)
    console = Console(width=None if sys.stdout.isatty() else 200)  # in a pipe, keys in one piece are for grep
    console.print(_heading(config))
    console.print(_columns(rows if args.all else [row for row in rows if not row.agrees], config.preset.profile))
    if not args.all:
        console.print(f"{sum(row.agrees for row in rows)} more settings are the same in all three (--all).\n")
    console.print(_other_table(config, {row.key for row in rows}))
    return 0


def _heading(config: DictConfig) -> str:
    preset = config.preset
    names = [preset.backbone or "no backbone preset", preset.method, preset.ablation, preset.profile]
    change = load_table()["ablations"].get(preset.ablation, {}).get("change", {})
    changed = ", ".join(f"{key}={value}" for key, value in change.items())
    return escape(" / ".join(str(name) for name in names if name) + (f": {changed}" if changed else ""))


def _columns(rows: Sequence[Row], profile: str | None) -> Table:
    table = _table("whose the settings are", "key", "paper's text", "released script", "ours", "why")
    for row in rows:
        _add(table, *cells(row, profile))
    return table


def cells(row: Row, profile: str | None = None) -> tuple[str, str, str, str, str]:
    """A row as text: key, the three columns with their places, and why; a value that is not a shipped one says so."""
    paper, released, shipped = row.setting.paper, row.setting.released, row.setting.shipped(profile)
    in_script = released == UNSAID or row.setting.file == SCRIPT
    return (
        row.key,
        paper if paper == UNSAID else f"{_text(paper)} ({row.setting.where})",
        _text(released) if in_script else f"{_text(released)} ({row.setting.file})",
        _text(row.here),
        row.why or ("" if row.here == shipped else f"changed here; shipped: {_text(shipped)}"),
    )


def _other_table(config: DictConfig, named: set[str]) -> Table:
    """Settings outside the table that presets or overrides changed."""
    here, shipped = (flatten(OmegaConf.to_container(c, resolve=True)) for c in (config, compose()))
    table = _table("in neither, changed here", "key", "default", "here")
    for key, value in here.items():
        if key not in named and value != shipped.get(key):
            _add(table, key, shipped.get(key), value)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "key")  # a shortened or broken key is of no use
    return table


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(escape(_text(cell)) for cell in cells))


def _text(value: object) -> str:
    """As YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
