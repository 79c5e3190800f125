"""The paper's settings (paper_settings.yaml) beside a composed configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

TABLE = Path(__file__).with_name("paper_settings.yaml")


@dataclass(frozen=True)
class Difference:
    """A value that is not the paper's. `why` is set where the project leaves the paper knowingly, with this very value."""

    key: str
    paper: Any
    here: Any
    why: str | None = None


def load_table() -> dict[str, Any]:
    """The table of paper_settings.yaml."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def expected_settings(table: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's value of every key for a run with these presets; null presets add nothing."""
    parts = (("backbones", preset["backbone"]), ("methods", preset["method"]), ("ablations", preset["ablation"]))
    chosen = [table["common"], *(table[group][name] for group, name in parts if name is not None)]
    values = {key: value for part in chosen for key, value in part.items()}
    values.pop("published", None)
    return values


def differences(config: DictConfig) -> Iterator[Difference]:
    """Every key of the paper's table at which `config` has another value."""
    table = load_table()
    for key, paper in expected_settings(table, config.preset).items():
        here = OmegaConf.select(config, key)
        if here != paper:
            yield Difference(key, paper, here, _known(table, config.preset, key, here))


def _known(table: Mapping[str, Any], preset: Mapping[str, Any], key: str, here: Any) -> str | None:
    for known in table["known_differences"]:
        applies = all(preset[name] == known[name] for name in ("backbone", "method") if name in known)
        if applies and known["key"] == key and known["value"] == here:
            return known["why"]
    return None


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for every leaf; lists, and mappings without entries, are leaves."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    dotted = f"{prefix}." if prefix else ""
    return {k: v for name, value in node.items() for k, v in flatten(value, f"{dotted}{name}").items()}
