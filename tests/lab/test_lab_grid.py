"""The grid and the report: resumption, tables, statistics, and the command line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from recipe.exgrpo.cli import main as cli
from recipe.exgrpo.cli.lab import numbers
from recipe.exgrpo.lab import grid
from recipe.exgrpo.lab.bases import BaseRecipe
from recipe.exgrpo.lab.grid import Axes, Cell, Study, read_all, read_cell, run_grid
from recipe.exgrpo.lab.report import figure, markdown, read_results, write_report
from recipe.exgrpo.lab.tables import RESULTS, TIMINGS, TRAINING, read_table, write_tables
from recipe.exgrpo.lab.trainer import LabSettings

torch.set_num_threads(1)
RECIPE = BaseRecipe(clean_steps=2, faulty_steps=1, batch_size=2)
SETTINGS = LabSettings(
    steps=2, questions=2, group_size=2, eval_every=1, eval_samples=1, final_samples=2, train_questions=8,
    heldout_questions=3,
)  # fmt: skip


def study(folder: Path, settings=SETTINGS) -> Study:
    return Study(settings, RECIPE, folder / "bases", folder / "out")


def axes(variants=("on_policy", "refill"), bases=("mid",), seeds=(0, 1)) -> list[Cell]:
    return Axes(variants, ["addition"], bases, [0], seeds).cells()


def ignore(stage, total):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with all cells and tables."""
    folder = tmp_path_factory.mktemp("finished")
    run_grid(axes(), study(folder), 1, ignore)
    write_tables(read_all(folder / "out"), folder / "out")
    return folder / "out"


# ---- grid


def test_cells_are_all_combinations_and_those_of_a_seed_come_together():
    cells = axes(bases=("mid", "weak"))
    assert len(set(cells)) == len(cells) == 8
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert len({cell.name for cell in cells}) == 8


@pytest.mark.parametrize(("wrong", "sentence"), [
    ({"variants": ["none"]}, "none"), ({"families": ["chess"]}, "chess"), ({"bases": ["strong"]}, "strong"),
])  # fmt: skip
def test_names_on_the_axes_are_checked_before_anything_runs(wrong, sentence):
    right = {"variants": ["refill"], "families": ["chain"], "bases": ["mid"], "base_seeds": [0], "seeds": [0]}
    with pytest.raises(ValueError, match=sentence):
        Axes(**(right | wrong)).cells()


def test_a_finished_cell_holds_curve_costs_and_training(finished):
    cell = axes()[1]
    result = json.loads((finished / "cells" / f"{cell.name}.json").read_text())
    assert [point["step"] for point in result["curve"]] == [0, 1, 2]
    assert [point["fresh_rollouts"] for point in result["curve"]] == [0, 4, 8]
    assert [point["step"] for point in result["training"]] == [1, 2]
    assert all(0 <= point["pass_rate"] <= 1 for point in result["curve"])
    assert result["curve"][-1]["sampled_tokens"] > 0


def test_an_interrupted_grid_goes_on_and_ends_in_the_same_tables(finished, tmp_path, monkeypatch):
    cells, here = axes(), study(tmp_path)
    run_cell, done = grid.run_cell, []

    def dies(cell, study):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell)
        return run_cell(cell, study)

    monkeypatch.setattr(grid, "run_cell", dies)
    with pytest.raises(KeyboardInterrupt):
        run_grid(cells, here, 1, ignore)
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2
    (here.path(cells[3]).parent / f".{cells[3].name}.json.123.partial").write_text("half a resu")

    monkeypatch.setattr(grid, "run_cell", lambda cell, study: done.append(cell) or run_cell(cell, study))
    run_grid(cells, here, 1, ignore)
    assert done == cells  # none twice
    write_tables(read_all(here.out), here.out)
    for name in (RESULTS, TRAINING):
        assert (here.out / name).read_bytes() == (finished / name).read_bytes()


def test_a_cell_of_other_settings_is_refused(finished):
    other = Study(LabSettings(), RECIPE, finished.parent / "bases", finished)
    with pytest.raises(ValueError, match=r"different settings.*--out"):
        read_cell(axes()[0], other)


def test_cells_of_unlike_studies_make_no_table(finished, tmp_path):
    (tmp_path / "cells").mkdir()
    for i, path in enumerate(sorted((finished / "cells").iterdir())):
        result = json.loads(path.read_text())
        result["keys"]["study"] += str(i > 0)
        (tmp_path / "cells" / path.name).write_text(json.dumps(result))
    with pytest.raises(ValueError, match="different settings"):
        read_all(tmp_path)


def test_the_key_changes_with_settings_recipe_variant_and_seed(tmp_path):
    cell = axes()[0]
    studies = [
        study(tmp_path),
        study(tmp_path, LabSettings()),
        Study(SETTINGS, BaseRecipe(), tmp_path, tmp_path),
    ]
    keys = {one.key(cell)["cell"] for one in studies} | {study(tmp_path).key(other)["cell"] for other in axes()[1:]}
    assert len(keys) == 6


def children_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(condition, seconds: float = 180) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_is_taken_up_by_two_workers(tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "recipe.exgrpo.cli.main", "lab", "run", "--suite", "on_policy,refill", "--families", "addition",
        "--seeds", "0-3", "--jobs", "2", "--steps", "4", "--eval-every", "4", "--heldout-questions", "4",
        "--clean-steps", "1", "--faulty-steps", "1", "--out", str(out), "--cache", str(tmp_path / "bases"), "--json",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: len(list((out / "cells").glob("*.json"))) > 0)
        workers = children_of(process.pid)
        assert len(workers) >= 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 15)

    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    assert 0 < len(before) < 8
    again = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    assert json.loads(again.stdout)["cells"] == 8
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read_table(out / RESULTS)[["variant", "seed"]].drop_duplicates()) == 8


# ---- tables and report

FIXED = {
    "on_policy": [[0.1, 0.2, 0.30], [0.1, 0.3, 0.40], [0.1, 0.2, 0.36]],
    "refill": [[0.1, 0.4, 0.51], [0.1, 0.5, 0.62], [0.1, 0.4, 0.56]],
    "exgrpo": [[0.1, 0.2, 0.33], [0.1, 0.3, 0.35]],  # one run is not there yet
}


def fixed_results(folder: Path) -> Path:
    results = []
    for variant, runs in FIXED.items():
        for seed, curve in enumerate(runs):
            cell = {"family": "chain", "base": "mid", "base_seed": 0, "seed": seed, "variant": variant}
            costs = ("fresh_rollouts", "sampled_tokens", "updated_tokens", "scored_tokens")
            points = [
                {"step": 10 * i, "pass_rate": p} | dict.fromkeys(costs, 100 * i) | {"seconds": i + 0.5}
                for i, p in enumerate(curve)
            ]
            results.append({"cell": cell, "curve": points, "training": [{"step": 1, "batch/pass_rate": 0.1}]})
    write_tables(results, folder)
    return folder


def test_tables_have_one_row_per_evaluation_and_keep_wall_times_apart(tmp_path):
    table = read_table(fixed_results(tmp_path) / RESULTS)
    assert len(table) == 3 * 8
    assert "seconds" not in table
    assert read_table(tmp_path / TIMINGS)["seconds"].tolist()[:3] == [0.5, 1.5, 2.5]


def test_a_report_is_the_same_bytes_from_the_same_results(tmp_path):
    folder = fixed_results(tmp_path)
    write_report(folder, "on_policy")
    first = {name: (folder / name).read_bytes() for name in ("report.md", "curves.png")}
    write_report(folder, "on_policy")
    assert first == {name: (folder / name).read_bytes() for name in first}
    assert first["curves.png"].startswith(b"\x89PNG")
    assert figure(read_results(folder)) == first["curves.png"]


def test_a_report_pairs_runs_by_seed_and_marks_what_excludes_zero(tmp_path):
    rows = read_results(fixed_results(tmp_path)).summary("on_policy")
    by = {row["variant"]: row for row in rows}
    assert list(by) == ["on_policy", "exgrpo", "refill"]
    assert by["on_policy"]["final_difference"] is None
    assert by["refill"]["final_difference"] == pytest.approx((0.21 + 0.22 + 0.20) / 3)
    assert by["refill"]["final_difference_half"] == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert by["exgrpo"]["final_difference"] == pytest.approx((0.03 - 0.05) / 2)
    assert by["refill"]["area_difference"] == pytest.approx(np.mean([0.1525, 0.155, 0.15]), abs=1e-9)
    assert (by["exgrpo"]["runs"], by["refill"]["fresh_rollouts"], by["refill"]["seconds"]) == (2, 200, 2.5)
    text = markdown(rows, "on_policy")
    assert "| `refill` | 3 | 0.563 ± 0.137 | **+0.210 ± 0.025** |" in text
    assert "-0.010 ± 0.508 |" in text
    assert "**-0.010" not in text


def test_runs_of_a_variant_evaluated_at_different_steps_are_refused(tmp_path):
    path = fixed_results(tmp_path) / RESULTS
    table = read_table(path)
    table[~((table["variant"] == "exgrpo") & (table["seed"] == 1) & (table["step"] == 10))].to_parquet(path)
    with pytest.raises(ValueError, match="runs of exgrpo on chain, mid were evaluated at different steps"):
        read_results(tmp_path)


def test_a_report_against_a_variant_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="masked_easy"):
        write_report(fixed_results(tmp_path), "masked_easy")
    assert not (tmp_path / "report.md").exists()
    with pytest.raises(FileNotFoundError, match="exgrpo lab run"):
        write_report(tmp_path / "nowhere", "on_policy")


# ---- command line


def test_the_command_line_runs_and_reports(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "run_cell", None)  # everything is there
    assert cli.main(["lab", "report", str(finished), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["variant"] for row in rows} == {"on_policy", "refill"}
    assert cli.main(["lab", "report", str(finished)]) == 0
    assert "report.md" in capsys.readouterr().out
    assert cli.main(["lab", "report", str(tmp_path)]) == 1
    assert "results.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "sentence"), [
    (["--suite", "nothing"], "nothing"),
    (["--suite", "refill", "--bases", "strong"], "strong"),
    (["--suite", "refill", "--jobs", "0"], "--jobs"),
    (["--suite", "refill", "--steps", "-3"], "lab.steps"),
])  # fmt: skip
def test_nonsense_on_the_command_line_ends_with_a_sentence(options, sentence, tmp_path, capsys):
    assert cli.main(["lab", "run", "--out", str(tmp_path), *options]) == 1
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_written_as_ranges_and_lists(capsys):
    assert numbers("0-2,7,1") == [0, 1, 2, 7]
    for wrong in ("3-1", "a", "1-", ""):
        with pytest.raises(SystemExit):
            cli.main(["lab", "run", "--suite", "refill", "--seeds", wrong])
        assert "list of seeds" in capsys.readouterr().err
