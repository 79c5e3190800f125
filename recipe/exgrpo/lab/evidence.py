"""A pre-registered study: makes its missing runs, judges its claims, and writes one document.

The file is written and committed before its runs are made. `run_stages` makes the missing runs and puts their tables beside the
file; `write_document` judges every hypothesis from those tables alone and replaces the marked part of the document.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.exgrpo.lab.bases import BaseRecipe
from recipe.exgrpo.lab.equal_cost import equal_cost_tables
from recipe.exgrpo.lab.files import content_key
from recipe.exgrpo.lab.grid import Study, read_cell, run_grid
from recipe.exgrpo.lab.rates import BestRates, best_rates, split_label
from recipe.exgrpo.lab.registration import Registration, Stage, load_registration
from recipe.exgrpo.lab.report import figure, read_results, setting_tables
from recipe.exgrpo.lab.suites import REFERENCE
from recipe.exgrpo.lab.tables import RESULTS, TIMINGS, read_table, write_tables
from recipe.exgrpo.lab.trainer import LabSettings
from recipe.exgrpo.lab.verdicts import judge
from recipe.exgrpo.report.comparison import Comparison
from recipe.exgrpo.report.parts import Columns, difference, markdown_table, number
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
CORRECTED: Columns = COLUMNS | {"corrected p": number("corrected_p", ".3f"), "verdict": number("verdict")}


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
        before = published_runs(folder)
        if before >= planned_runs(stage):
            continue
        cells = stage.cells(tuned(path, stages, stage))
        settings, recipe = LabSettings(**stage.settings), BaseRecipe(**stage.recipe)
        study = Study(settings, recipe, cache, out / content_key(settings, recipe))
        try:
            run_grid(cells, study, jobs, lambda what, total, name=name: advance(f"{name}: {what}", total))
        finally:
            results = [published(result, stage) for cell in cells if (result := read_cell(cell, study))]
            if len(results) > before:
                publish(results, out / name, folder)


def planned_runs(stage: Stage) -> int:
    return len(stage.variants) * len(stage.settings_compared) * stage.runs


def tuned(path: Path, stages: dict[str, Stage], stage: Stage) -> BestRates | None:
    """The rates that a tuned stage's variants run at; ValueError unless the stage it is tuned on is complete."""
    if stage.tuned_on is None:
        return None
    folder = path.parent / stage.tuned_on
    if published_runs(folder) < planned_runs(stages[stage.tuned_on]):
        raise ValueError(f"rates are chosen on stage {stage.tuned_on}, whose runs are not complete.")
    return best_rates(read_table(folder / RESULTS))


def published(result: dict, stage: Stage) -> dict:
    """A cell's result as the tables of its stage have it: a tuned variant by its name, with its rate beside it."""
    if stage.tuned_on is None:
        return result
    variant, rate = split_label(result["cell"]["variant"])
    return result | {"cell": result["cell"] | {"variant": variant, "rate": rate}}


def published_runs(folder: Path) -> int:
    """How many runs the tables in `folder` hold; 0 without tables."""
    return len(read_results(folder).costs) if (folder / RESULTS).exists() else 0


def publish(results: list[dict], scratch: Path, folder: Path) -> None:
    """Write the tables of `results` into `folder`, but for the large one of all training steps, which stays in `scratch`."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in write_tables(results, scratch):
        if table.name in (RESULTS, TIMINGS):
            shutil.copyfile(table, folder / table.name)


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
    columns = COLUMNS if registration.correction == "none" else CORRECTED
    parts = ["## Verdicts", "", *markdown_table(columns, rows)]
    for name, found in results.items():
        picture = path.parent / name / "curves.png"
        write_atomically(picture, figure(found))
        parts += ["", f"## Stage `{name}`", *setting_tables(found.summary(REFERENCE), heading="###")]
        parts += ["", f"![learning curves of {name}]({os.path.relpath(picture, document.parent)})"]
        equal = registration.stages[name].equal
        parts += equal_cost_tables(read_table(path.parent / name / RESULTS), equal, REFERENCE)
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    write_atomically(document, "\n".join([head + BEGIN, "", *parts, "", END + tail]).encode())
    return rows
