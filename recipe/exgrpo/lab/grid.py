"""The grid of a study: variants x bases x seeds, one process per core, one result file per cell, resumable.

A finished cell is a JSON file, written atomically; the same command again runs only the cells that are missing. The tables are
made from the files at the end, in the order of the cells, so that an interrupted grid ends in the same parquet.
"""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch

from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.lab.bases import BaseRecipe, base_path, ensure_base, grade_of, load_base
from recipe.exgrpo.lab.families import family
from recipe.exgrpo.lab.files import content_key
from recipe.exgrpo.lab.rates import split_label
from recipe.exgrpo.lab.suites import variant
from recipe.exgrpo.lab.trainer import Lab, LabSettings
from verl_ext.files import write_atomically

LAB_VERSION = 2  # increase it when a change of code changes results


@dataclass(frozen=True)
class Cell:
    """One run: what is compared (`variant`, a label of `rates`), on what (`family`, `base`, `base_seed`), and its seed."""

    family: str
    base: str
    base_seed: int
    seed: int
    variant: str

    @property
    def name(self) -> str:
        return f"{self.family}.{self.base}.b{self.base_seed}.s{self.seed}.{self.variant}"

    @property
    def config(self) -> ExGRPOConfig:
        return variant(split_label(self.variant)[0], self.seed)

    def settings(self, shared: LabSettings) -> LabSettings:
        """`shared` at this cell's learning rate."""
        rate = split_label(self.variant)[1]
        return replace(shared, learning_rate=rate * (shared.learning_rate or family(self.family).learning_rate))


@dataclass(frozen=True)
class Study:
    """What all cells share; `cells/` goes to `out`, base models to `cache`."""

    settings: LabSettings
    recipe: BaseRecipe
    cache: Path
    out: Path

    def path(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.name}.json"

    def recipe_of(self, cell: Cell) -> BaseRecipe:
        return replace(self.recipe, seed=cell.base_seed)

    def key(self, cell: Cell) -> dict[str, str]:
        """`study` is common to all cells that may be compared; `cell` changes with everything that its result depends on."""
        study = content_key(LAB_VERSION, self.settings, self.recipe)
        return {"study": study, "cell": content_key(study, cell, cell.config)}


@dataclass(frozen=True)
class Axes:
    """The axes of a grid. `cells` raises ValueError for unknown names."""

    variants: Sequence[str]
    families: Sequence[str]
    bases: Sequence[str]
    base_seeds: Sequence[int]
    seeds: Sequence[int]

    def cells(self) -> list[Cell]:
        """All cells, those of one seed together, so that an unfinished grid already compares variants."""
        for name in self.variants:
            variant(split_label(name)[0])
        for name, base in product(self.families, self.bases):
            family(name)
            grade_of(name, base)
        axes = (self.seeds, self.base_seeds, self.families, self.bases, self.variants)
        return [Cell(f, base, base_seed, seed, v) for seed, base_seed, f, base, v in product(*axes)]


def run_cell(cell: Cell, study: Study) -> dict:
    """Run one cell from its cached base and write its file; returns the result."""
    settings, task = cell.settings(study.settings), family(cell.family)
    path = base_path(study.cache, cell.family, cell.base, study.recipe_of(cell))
    lab = Lab(cell.config, settings, task, load_base(path, task), cell.seed)
    curve, training = [measure(lab, 0)], []
    for step in range(1, settings.steps + 1):
        training.append({"step": step} | lab.step(step))
        if step % settings.eval_every == 0 or step == settings.steps:
            curve.append(measure(lab, step))
    result = {"cell": asdict(cell), "keys": study.key(cell), "curve": curve, "training": training}
    write_atomically(study.path(cell), json.dumps(result).encode())
    return result


def measure(lab: Lab, step: int) -> dict:
    """One point of the learning curve, with the costs of the run so far."""
    samples = lab.settings.final_samples if step == lab.settings.steps else lab.settings.eval_samples
    return {"step": step, "pass_rate": lab.evaluate(samples)} | asdict(lab.costs)


def read_cell(cell: Cell, study: Study) -> dict | None:
    """The finished result of a cell, None when there is none; ValueError when it was made with different settings."""
    path = study.path(cell)
    if not path.exists():
        return None
    result = json.loads(path.read_bytes())
    if result["keys"] != study.key(cell):
        raise ValueError(f"{path} was made with different settings or another version; use another --out.")
    return result


def read_all(out: Path) -> list[dict]:
    """All finished cells of a folder, those of earlier calls too; ValueError when they were made with different settings."""
    results = [json.loads(path.read_bytes()) for path in sorted((out / "cells").glob("*.json"))]
    if len({result["keys"]["study"] for result in results}) > 1:
        raise ValueError(f"the cells in {out} were made with different settings; use one --out per study.")
    return results


def run_grid(cells: Sequence[Cell], study: Study, jobs: int, advance: Callable[[str, int], None]) -> None:
    """Train the missing bases, then run the missing cells.

    `advance(stage, total)` is called once when a stage begins and once per finished item. With one job everything runs in this
    process.
    """
    todo = [cell for cell in cells if read_cell(cell, study) is None]
    recipes = dict.fromkeys((cell.family, cell.base, study.recipe_of(cell)) for cell in todo)
    first = dict.fromkeys((name, "clean", recipe) for name, _, recipe in recipes)
    with workers(min(jobs, max(len(todo), 1))) as run:
        for stage, wanted in (("demonstrations", first), ("bases", recipes)):
            missing = [(study.cache, *base) for base in wanted if not base_path(study.cache, *base).exists()]
            _stage(stage, run(ensure_base, missing), len(missing), advance)
        _stage("cells", run(run_cell, [(cell, study) for cell in todo]), len(todo), advance)


def _stage(name: str, done: Iterable, total: int, advance: Callable[[str, int], None]) -> None:
    advance(name, total)
    for _ in done:
        advance(name, total)


@contextmanager
def workers(jobs: int) -> Iterator[Callable]:
    """`run(function, argument tuples)` yielding as calls finish, over `jobs` processes of one torch thread each."""
    if jobs == 1:
        yield lambda function, calls: (function(*call) for call in calls)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_worker)

    def run(function: Callable, calls: Sequence[tuple]) -> Iterator:
        for future in as_completed([pool.submit(function, *call) for call in calls]):
            yield future.result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """One torch thread; and exit when the parent ends, killed or not, for an orphaned worker would wait forever."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
