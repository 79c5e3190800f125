"""docs/reproduce.md names every script, and the docs' numbers are those of the tables and formulas they were made from."""

import json
import re

import pytest

from data.validation import AUTHORS, Part
from recipe.exgrpo.checks.findings import NOTE
from recipe.exgrpo.checks.memory import GIB, estimate_gpu, memory_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import model_shape
from recipe.exgrpo.cli.config import cells
from recipe.exgrpo.presets.compose import ROOT, compose, experiment_scripts, script_overrides
from recipe.exgrpo.presets.paper_settings import compare, load_table

DOC = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOC.splitlines() if line.startswith("|")]


def test_every_experiment_script_is_named():
    missing = [str(p.relative_to(ROOT)) for p in experiment_scripts() if str(p.relative_to(ROOT)) not in DOC]
    assert missing == []


def test_every_script_it_names_exists():
    for name in re.findall(r"scripts/[\w./-]+\.(?:sh|sbatch)", DOC):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("name", list(load_table()["ablations"]))
def test_ablation_rows_have_the_published_average_and_an_empty_cell(name):
    [row] = [row for row in ROWS if row[1:2] == [f"`scripts/ablations/{name}.sh`"]]
    ablation = load_table()["ablations"][name]
    assert all(f"`{key}=" in row[2] for key in ablation["change"])
    assert row[3] in (ablation.get("where", ""), "")
    assert row[5] == ""
    if ablation["published"] is None:
        assert not re.search(r"\d", row[4])
    else:
        assert float(row[4]) == ablation["published"]


def test_the_three_columns_are_those_of_exgrpo_config():
    config = compose(script_overrides(ROOT / "scripts" / "qwen2.5-math-7b_exgrpo.sh"))
    expected = {cells(row)[0]: list(cells(row)[1:]) for row in compare(config) if not row.agrees}
    [start] = [i for i, row in enumerate(ROWS) if row[:3] == ["key", "paper's text", "released script"]]
    assert {row[0].strip("`"): row[1:] for row in ROWS[start + 2 : start + 2 + len(expected)]} == expected


def test_the_validation_set_is_the_one_that_is_made():
    [questions] = [row for row in ROWS if row[0] == "questions"]
    [samples] = [row for row in ROWS if row[0] == "samples of each"]
    parts = [Part(int(n), int(k)) for n, k in zip(questions[1:], samples[1:], strict=True)]
    assert parts == list(AUTHORS.values())
    assert f"{sum(n * k for n, k in parts):,} samples of {sum(n for n, _ in parts):,} questions" in DOC


def test_result_rows_are_the_published_ones_and_ours_are_empty():
    results = json.loads((ROOT / "recipe" / "exgrpo" / "presets" / "paper_results.json").read_text(encoding="utf-8"))
    inside, outside = results["groups"].values()
    for backbone in results["backbones"].values():
        for published in backbone["rows"]:
            scores, averages = published["scores"], list(published["averages"].values())
            expected = [*(scores[b] for b in inside), averages[0], *(scores[b] for b in outside), averages[1]]
            [row] = [r for r in ROWS if r[:2] == [backbone["title"], f"{published['method']}, published"]]
            assert [float(cell) for cell in row[2:]] == expected
    ours = [row for row in ROWS if len(row) > 1 and row[1].endswith(", ours")]
    assert len(ours) == 12
    assert all(cell == "" for row in ours for cell in row[2:])


@pytest.mark.parametrize("name", ["docs/reproduce.md", "docs/gpu.md", "README.md"])
def test_the_gpu_environment_is_made_by_make(name):
    """One command; flash-attn, whose build would fail there, is not part of it."""
    assert "make setup-gpu" in (ROOT / name).read_text(encoding="utf-8")
    lock = (ROOT / "requirements-gpu.lock").read_text(encoding="utf-8")
    packages = [line for line in lock.splitlines() if not line.startswith("#")]
    assert f"the {len(packages)} packages" in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


MULTI_NODE = (ROOT / "docs" / "multi-node.md").read_text(encoding="utf-8")
HARDWARE = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in MULTI_NODE.splitlines() if " GB | " in line
]


@pytest.mark.parametrize("row", HARDWARE, ids=lambda row: row[0])
def test_hardware_rows_are_what_the_check_estimates(monkeypatch, row):
    """A 7B run with the row's switches fits by the estimate, and takes what the row says."""
    given = [] if row[1] == "(default)" else row[1].strip("`").split()
    for switch in (word for word in given if word[0].isupper()):
        monkeypatch.setenv(*switch.split("="))
    arguments = [word for word in given if word[0].islower()]
    run = Run.of(compose(script_overrides(ROOT / "scripts" / "qwen2.5-math-7b_exgrpo.sh", arguments)))
    estimate = estimate_gpu(run, model_shape("Qwen/Qwen2.5-7B"), run.config.preset.gpu_memory_gib * GIB)
    assert [f"{size / GIB:.0f}" for size in (estimate.update, estimate.rollout)] == row[3:5]
    assert [f.text for f in memory_findings(run) if f.severity != NOTE] == []


def test_there_is_a_row_for_every_size_of_machine():
    assert len(HARDWARE) == 7
