"""A training run read back from its folder: the steps of `metrics.jsonl` and the settings of its newest recorded start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from recipe.exgrpo.presets.paper_settings import flatten
from recipe.exgrpo.runs.record import last_config, starts
from verl_ext.metrics_log import read_metrics

FILE, VALIDATION, QUESTIONS = "metrics.jsonl", "val/pass_rate", "batch/questions"
SEEDS = ("exgrpo.seed", "data.seed")


@dataclass(frozen=True)
class RunMetrics:
    """One run.

    Attributes:
        folder: `trainer.default_local_dir`.
        metrics: one row per logged step, indexed by step (rising), one column per metric; NaN where it was not logged, or was
            logged as null (not a number).
        settings: dotted key -> value of the newest start; empty without a record.
        starts: how often it was started.
        commit: of the newest start, with a "+" where files had changed; None without a record.
        torn: whether the last line was left out, torn by an interruption.
    """

    folder: Path
    metrics: pd.DataFrame
    settings: Mapping[str, Any]
    starts: int
    commit: str | None
    torn: bool

    @cached_property
    def validation(self) -> pd.Series:
        """Held-out pass rates, float, indexed by step."""
        return self.values(VALIDATION)

    @property
    def last_step(self) -> int:
        return int(self.metrics.index[-1])

    @property
    def seed(self) -> int | None:
        """What its questions and draws came from; None without a record."""
        return next((self.settings[key] for key in SEEDS if self.settings.get(key) is not None), None)

    @property
    def group_size(self) -> int | None:
        """K; None without a record."""
        return self.settings.get("actor_rollout_ref.rollout.n")

    def values(self, name: str) -> pd.Series:
        """The values of a metric, float, indexed by the steps that have one; empty if it was never logged."""
        return self.metrics.get(name, pd.Series(index=self.metrics.index[:0])).dropna().astype(float)


def read_run(folder: Path) -> RunMetrics:
    """The run in `folder` (`trainer.default_local_dir`).

    Raises FileNotFoundError without a metrics.jsonl, ValueError when it has no step or is damaged before its last line.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}; name the folder of a run (its trainer.default_local_dir).")
    rows, torn = read_metrics(path)
    if not rows:
        raise ValueError(f"{path} has no finished step yet.")
    metrics = pd.DataFrame(rows).set_index("step")
    if not (metrics.index.is_monotonic_increasing and metrics.index.is_unique):
        raise ValueError(f"{path}: steps do not rise from line to line.")
    found, config = starts(folder), last_config(folder)
    return RunMetrics(folder, metrics, flatten(config) if config else {}, len(found), _commit(found), torn)


def _commit(found: list[Path]) -> str | None:
    if not found or not (found[-1] / "run.json").is_file():
        return None
    git = json.loads((found[-1] / "run.json").read_text(encoding="utf-8")).get("git")
    return git and git["commit"][:9] + ("+" if git["changed"] else "")
