"""Whose a setting is: the paper's text, the released script and ours (paper_settings.yaml), beside a composed configuration."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

TABLE = Path(__file__).with_name("paper_settings.yaml")
UNSAID = "-"  # in a column that does not name the key; null is a value
SCRIPT = "run_exgrpo.sh"


@dataclass(frozen=True)
class Setting:
    """One key of the table. A column that does not name it is UNSAID.

    Attributes:
        paper, where: value in the paper's text, and its table, equation, algorithm or appendix.
        released, file: value in the authors' released code, and its file.
        ours: value of shipped runs where it is neither the paper's nor, where the paper says nothing, the released one.
        why: the reason for it, or what one number means there and here.
    """

    paper: Any = UNSAID
    where: str = ""
    released: Any = UNSAID
    file: str = SCRIPT
    ours: Any = UNSAID
    why: str = ""

    @property
    def source(self) -> Any:
        """The paper's value; the released one where the paper says nothing."""
        return _first(self.paper, self.released)

    def shipped(self, profile: str | None = None) -> Any:
        """The value of a shipped run: ours, or the authors' with `profile=released`."""
        return _first(self.released, self.ours, self.paper) if profile == "released" else _first(self.ours, self.source)


@dataclass(frozen=True)
class Row:
    """A setting beside its value in a run. `why` is the reason for a value that shipped runs have, None for any other."""

    key: str
    setting: Setting
    here: Any
    why: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether paper, released script and this run all name the key, with one value."""
        return self.setting.paper == self.setting.released == self.here

    @property
    def differs(self) -> bool:
        """Whether those that name the key have more than one value."""
        return len({self.setting.paper, self.setting.released, self.here} - {UNSAID}) > 1


def load_table() -> dict[str, Any]:
    """The content of paper_settings.yaml."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def settings_of(table: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Setting]:
    """Every key's setting for a run with these presets; null presets add nothing."""
    chosen = [("backbones", preset["backbone"]), ("methods", preset["method"])]
    parts = [table["common"], *(table[group][name] for group, name in chosen if name)]
    fields: dict[str, dict] = {}
    for part in parts:
        for key, more in part.items():
            fields[key] = fields.get(key, {}) | more
    settings = {key: Setting(**one) for key, one in fields.items()}
    if preset["ablation"]:
        settings |= _changed(table["ablations"][preset["ablation"]])
    return settings


def _changed(ablation: Mapping[str, Any]) -> Iterator[tuple[str, Setting]]:
    """The settings of an ablation: the paper's, or a control of ours."""
    for key, value in ablation["change"].items():
        if "where" in ablation:
            yield key, Setting(paper=value, where=ablation["where"])
        else:
            yield key, Setting(ours=value, why="a control of ours")


def compare(config: DictConfig) -> list[Row]:
    """Every key of the table beside its value in `config`."""
    preset = config.preset
    rows = []
    for key, setting in settings_of(load_table(), preset).items():
        here = OmegaConf.select(config, key)
        rows.append(Row(key, setting, here, _reason(setting, here, preset.profile)))
    return rows


def differences(config: DictConfig) -> list[Row]:
    """The rows in which the run has not the paper's value or, where the paper says nothing, not the released one."""
    return [row for row in compare(config) if row.here != row.setting.source]


def _reason(setting: Setting, here: Any, profile: str | None) -> str | None:
    if profile == "released" and here == setting.released:
        return "profile=released" if here != setting.shipped() else None
    return setting.why or None if here == setting.shipped() else None


def _first(*values: Any) -> Any:
    return next((value for value in values if value != UNSAID), UNSAID)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value for every leaf; lists, and mappings without entries, are leaves."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    dotted = f"{prefix}." if prefix else ""
    return {k: v for name, value in node.items() for k, v in flatten(value, f"{dotted}{name}").items()}
