"""A pre-registered study: stages of runs and hypotheses read from one YAML file, verdicts by its rule, one document.

The file is written and committed before its runs are made. `run_stages` makes the missing runs and puts their tables beside the
file; `write_document` judges every hypothesis from those tables alone and replaces the marked part of the document.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from recipe.exgrpo.lab.bases import BaseRecipe
from recipe.exgrpo.lab.files import content_key
from recipe.exgrpo.lab.grid import Axes, Study, read_cell, run_grid
from recipe.exgrpo.lab.report import figure, read_results, setting_tables
from recipe.exgrpo.lab.suites import REFERENCE, suite
from recipe.exgrpo.lab.tables import RESULTS, TIMINGS, write_tables
from recipe.exgrpo.lab.trainer import LabSettings
from recipe.exgrpo.report.comparison import Comparison, final, mean_height, spread
from recipe.exgrpo.report.parts import Columns, difference, markdown_table, number
from recipe.exgrpo.report.stats import Interval
from verl_ext.files import write_atomically

BEGIN, END = "<!-- results: made by `exgrpo lab evidence`, do not edit -->", "<!-- end of results -->"
COLUMNS: Columns = {
    "": number("id"),
    "claim": number("claim"),
    "setting": number("setting"),
    "runs": lambda row: f"{row['runs']} of {row['planned']}",
    "final difference": difference("final"),
    "area difference": difference("area"),
    "verdict": number("verdict"),
}
EXPECTED = ("above", "below", "not_below")


@dataclass(frozen=True)
class Stage:
    """One grid: variants (a suite or names by commas) x families x bases x base seeds x seeds.

    `settings` are the fields of `LabSettings` and `recipe` those of `BaseRecipe` that differ from the defaults.
    """

    suite: str
    families: list[str]
    bases: list[str]
    base_seeds: list[int]
    seeds: list[int]
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> Axes:
        return Axes(suite(self.suite), self.families, self.bases, self.base_seeds, self.seeds)

    @property
    def runs(self) -> int:
        """Planned runs per variant and setting."""
        return len(self.base_seeds) * len(self.seeds)


@dataclass(frozen=True)
class Hypothesis:
    """`variant` ends `above`, `below` or `not_below` the reference `against`, in each of `bases` (all of its stage when empty).

    The claim is about final held-out pass@1; `not_below` allows for `margin`.
    """

    id: str
    claim: str
    stage: str
    variant: str
    expect: str
    against: str = REFERENCE
    bases: list[str] = field(default_factory=list)
    margin: float = 0.01

    def __post_init__(self) -> None:
        if self.expect not in EXPECTED:
            raise ValueError(f"hypothesis {self.id}: expect must be one of {', '.join(EXPECTED)}; got {self.expect!r}.")


@dataclass(frozen=True)
class Registration:
    """A study file: stages by name, in the order in which they run, and hypotheses."""

    stages: dict[str, Stage]
    hypotheses: list[Hypothesis]


def load_registration(path: Path) -> Registration:
    """Read a study file; ValueError naming what is missing or unknown in it."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        stages = {name: Stage(**stage) for name, stage in values["stages"].items()}
        hypotheses = [Hypothesis(**hypothesis) for hypothesis in values["hypotheses"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a study: {error}") from error
    for hypothesis in hypotheses:
        if hypothesis.stage not in stages:
            raise ValueError(f"hypothesis {hypothesis.id}: no stage is called {hypothesis.stage!r}.")
        missing = {hypothesis.variant, hypothesis.against} - set(stages[hypothesis.stage].axes.variants)
        if missing:
            raise ValueError(f"hypothesis {hypothesis.id}: stage {hypothesis.stage} does not run {min(missing)!r}.")
    return Registration(stages, hypotheses)


def run_stages(
    path: Path, names: list[str], cache: Path, out: Path, jobs: int, advance: Callable[[str, int], None]
) -> None:
    """Make the missing runs of the stages `names` (all when empty), and put their tables into a folder beside `path`.

    A stage whose published tables are complete is finished, wherever its cells are: to run it again, remove its folder. `out`
    keeps the cells; stages of equal settings share them. After an interruption the tables hold the finished cells, unless
    the tables published before hold more.
    """
    stages = load_registration(path).stages
    unknown = [name for name in names if name not in stages]
    if unknown:
        raise ValueError(f"no stage is called {unknown[0]!r}; {path} has {', '.join(stages)}.")
    for name in names or stages:
        stage, folder = stages[name], path.parent / name
        cells, before = stage.axes.cells(), published_runs(folder)
        if before >= len(cells):
            continue
        settings, recipe = LabSettings(**stage.settings), BaseRecipe(**stage.recipe)
        study = Study(settings, recipe, cache, out / content_key(settings, recipe))
        try:
            run_grid(cells, study, jobs, lambda what, total, name=name: advance(f"{name}: {what}", total))
        finally:
            results = [result for cell in cells if (result := read_cell(cell, study))]
            if len(results) > before:
                publish(results, out / name, folder)


def published_runs(folder: Path) -> int:
    """How many runs the tables in `folder` hold; 0 without tables."""
    return len(read_results(folder).costs) if (folder / RESULTS).exists() else 0


def publish(results: list[dict], scratch: Path, folder: Path) -> None:
    """Write the tables of `results` into `folder`, but for the large one of all training steps, which stays in `scratch`."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in write_tables(results, scratch):
        if table.name in (RESULTS, TIMINGS):
            shutil.copyfile(table, folder / table.name)


def verdict(found: Interval | None, expect: str, margin: float, planned: int) -> str:
    """What the 95 % interval of a paired difference says about an expectation.

    `supported` when all of it is on the expected side, `contradicted` when all of it is on the other, else `undecided`; for
    `not_below` the sides meet at -margin. `not tested` with fewer runs than were planned.
    """
    if found is None or found.n < planned or math.isnan(found.half):
        return "not tested"
    low, high = found.mean - found.half, found.mean + found.half
    if expect == "below":
        low, high = -high, -low
    border = -margin if expect == "not_below" else 0.0
    return "supported" if low > border else "contradicted" if high < border else "undecided"


def judge(registration: Registration, results: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """One JSON-able row per hypothesis and setting: the paired differences and the verdict on the final one."""
    rows = []
    for hypothesis in registration.hypotheses:
        stage = registration.stages[hypothesis.stage]
        found = results.get(hypothesis.stage)
        for setting in product(stage.families, hypothesis.bases or stage.bases):
            pairs = found and found.difference((*setting, hypothesis.variant), hypothesis.against)
            rows.append(
                {"id": hypothesis.id, "claim": hypothesis.claim, "setting": ", ".join(setting)}
                | {"runs": 0 if pairs is None else pairs.shape[1], "planned": stage.runs}
                | spread("final", final(pairs))
                | spread("area", mean_height(pairs))
                | {"verdict": verdict(final(pairs), hypothesis.expect, hypothesis.margin, stage.runs)}
            )
    return rows


def results_of(path: Path, registration: Registration) -> dict[str, Comparison]:
    """The published tables, by stage; without the stages that have none."""
    folders = {name: path.parent / name for name in registration.stages}
    return {name: read_results(folder) for name, folder in folders.items() if (folder / RESULTS).exists()}


def write_document(path: Path, document: Path) -> list[dict[str, Any]]:
    """Judge, draw, and replace the marked part of `document`; returns the verdicts. ValueError without the two marks."""
    registration = load_registration(path)
    results = results_of(path, registration)
    rows = judge(registration, results)
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{document} must have the line {BEGIN!r} once, and {END!r} after it.")
    parts = ["## Verdicts", "", *markdown_table(COLUMNS, rows)]
    for name, found in results.items():
        picture = path.parent / name / "curves.png"
        write_atomically(picture, figure(found))
        parts += ["", f"## Stage `{name}`", *setting_tables(found.summary(REFERENCE), heading="###")]
        parts += ["", f"![learning curves of {name}]({os.path.relpath(picture, document.parent)})"]
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    write_atomically(document, "\n".join([head + BEGIN, "", *parts, "", END + tail]).encode())
    return rows
