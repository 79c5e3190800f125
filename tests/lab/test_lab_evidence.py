"""A pre-registered study: its file, its runs, its rule and its document."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch
import yaml

from recipe.exgrpo.cli import main as cli
from recipe.exgrpo.lab.evidence import BEGIN, END, run_stages, write_document
from recipe.exgrpo.lab.rates import best_rates, label
from recipe.exgrpo.lab.registration import load_registration
from recipe.exgrpo.lab.report import read_results
from recipe.exgrpo.lab.tables import RESULTS, read_table, write_tables
from recipe.exgrpo.lab.verdicts import verdict
from recipe.exgrpo.report.parts import difference
from recipe.exgrpo.report.stats import Interval

torch.set_num_threads(1)
EVIDENCE = Path(__file__).resolve().parents[2] / "docs/evidence/first"
TINY = {
    "steps": 1,
    "questions": 2,
    "group_size": 2,
    "eval_samples": 1,
    "final_samples": 1,
    "train_questions": 4,
    "heldout_questions": 2,
}
RECIPE = {"clean_steps": 2, "faulty_steps": 1, "batch_size": 2}
STAGE = {"suite": "on_policy,refill", "families": ["addition"], "bases": ["mid"], "base_seeds": [0], "seeds": [0, 1, 2]}
CLAIM = {"id": "H1", "claim": "refill | ends above", "stage": "main", "variant": "refill", "expect": "above"}
FINALS = {"on_policy": [0.50, 0.55, 0.45], "refill": [0.60, 0.67, 0.54]}


def write_study(folder: Path, grid=STAGE, **claim) -> Path:
    path = folder / "evidence" / "study.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"stages": {"main": grid}, "hypotheses": [CLAIM | claim]}))
    (folder / "evidence.md").write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return path


def publish(folder: Path, finals=FINALS) -> None:
    """Tables of runs whose curve rises from 0.2 in a straight line."""
    costs = dict.fromkeys(("fresh_rollouts", "sampled_tokens", "updated_tokens", "scored_tokens"), 10) | {
        "seconds": 1.0
    }
    results = [
        {
            "cell": {"family": "addition", "base": "mid", "base_seed": 0, "seed": seed, "variant": name},
            "curve": [{"step": 0, "pass_rate": 0.2} | costs, {"step": 10, "pass_rate": final} | costs],
            "training": [],
        }
        for name, values in finals.items()
        for seed, final in enumerate(values)
    ]
    write_tables(results, folder / "evidence" / "main")


@pytest.mark.parametrize(("mean", "half", "expect", "found"), [
    (0.05, 0.04, "above", "supported"), (0.05, 0.06, "above", "undecided"), (-0.05, 0.04, "above", "contradicted"),
    (-0.05, 0.04, "below", "supported"), (-0.05, 0.06, "below", "undecided"), (0.05, 0.04, "below", "contradicted"),
    (0.0, 0.009, "not_below", "supported"), (0.0, 0.011, "not_below", "undecided"),
    (-0.03, 0.019, "not_below", "contradicted"), (-0.03, 0.021, "not_below", "undecided"),
])  # fmt: skip
def test_the_rule(mean, half, expect, found):
    assert verdict(Interval(mean, half, 10), expect, 0.01, 10) == found


@pytest.mark.parametrize("interval", [None, Interval(0.5, 0.1, 9), Interval(0.5, math.nan, 10)])
def test_fewer_runs_than_planned_test_nothing(interval):
    assert verdict(interval, "above", 0.01, 10) == "not tested"


def test_differences_are_paired_and_judged(tmp_path):
    path = write_study(tmp_path)
    publish(tmp_path)
    (row,) = write_document(path, tmp_path / "evidence.md")
    differences = [b - a for a, b in zip(*FINALS.values(), strict=True)]
    # 4.303 is Student's t for 2 degrees of freedom at 97.5 %.
    half = 4.302653 * statistics.stdev(differences) / math.sqrt(3)
    assert row["final"] == pytest.approx(statistics.mean(differences))
    assert row["final_half"] == pytest.approx(half, rel=1e-5)
    assert row["area"] == pytest.approx(statistics.mean(differences) / 2)  # two straight lines from one point
    assert (row["runs"], row["verdict"], row["setting"]) == (3, "supported", "addition, mid")


def test_a_missing_run_is_not_tested_and_shown_as_such(tmp_path):
    path = write_study(tmp_path)
    publish(tmp_path, {"on_policy": [0.5, 0.5, 0.5], "refill": [0.9, 0.9]})
    (row,) = write_document(path, tmp_path / "evidence.md")
    assert row["verdict"] == "not tested"
    assert "2 of 3" in (tmp_path / "evidence.md").read_text()


def test_only_the_marked_part_of_the_document_changes_and_it_repeats(tmp_path):
    path = write_study(tmp_path)
    publish(tmp_path)
    write_document(path, tmp_path / "evidence.md")
    text = (tmp_path / "evidence.md").read_text()
    assert text.startswith(f"# Before\n\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\n\nafter\n")
    assert "old" not in text
    assert "| H1 | refill \\| ends above | addition, mid | 3 of 3 | **+0.103" in text
    assert "### addition, mid base" in text
    assert "(evidence/main/curves.png)" in text
    assert (tmp_path / "evidence" / "main" / "curves.png").read_bytes().startswith(b"\x89PNG")
    write_document(path, tmp_path / "evidence.md")
    assert (tmp_path / "evidence.md").read_text() == text


def test_before_any_run_every_claim_is_untested(tmp_path):
    path = write_study(tmp_path)
    (row,) = write_document(path, tmp_path / "evidence.md")
    assert (row["runs"], row["final"], row["verdict"]) == (0, None, "not tested")


@pytest.mark.parametrize("text", ["no marks", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_document_without_its_two_marks_is_refused(tmp_path, text):
    path = write_study(tmp_path)
    (tmp_path / "evidence.md").write_text(text)
    with pytest.raises(ValueError, match="must have the line"):
        write_document(path, tmp_path / "evidence.md")
    assert (tmp_path / "evidence.md").read_text() == text


@pytest.mark.parametrize(("stage", "claim", "sentence"), [
    (STAGE, {"stage": "other"}, "no stage is called 'other'"),
    (STAGE, {"variant": "exgrpo"}, "stage main does not run 'exgrpo'"),
    (STAGE, {"against": "masked_easy"}, "does not run 'masked_easy'"),
    (STAGE, {"expect": "better"}, "expect must be one of above, below, not_below"),
    (STAGE | {"seed": [0]}, {}, "is not a study"),
    (STAGE | {"suite": "none"}, {}, "'none'"),
])  # fmt: skip
def test_a_study_that_contradicts_itself_is_refused(tmp_path, stage, claim, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_registration(write_study(tmp_path, stage, **claim))


def test_the_command_runs_what_is_missing_and_judges(tmp_path, capsys):
    path = write_study(tmp_path, STAGE | {"seeds": [0, 1], "settings": TINY, "recipe": RECIPE})
    command = ["lab", "evidence", str(path), "--run", "--jobs", "1", "--out", str(tmp_path / "cells")]
    assert cli.main([*command, "--cache", str(tmp_path / "bases"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert row["runs"] == 2
    assert row["verdict"] in ("supported", "contradicted", "undecided")
    published = read_results(path.parent / "main")
    assert published.costs["variant"].value_counts().to_dict() == {"on_policy": 2, "refill": 2}


def missing_runs(path: Path, folder: Path, *names: str, interrupt: bool = False) -> list[tuple[str, int]]:
    """The stages that `run_stages` reports to its progress bar; `interrupt`: Ctrl-C after the first finished run."""
    seen = []

    def advance(stage: str, total: int) -> None:
        seen.append((stage, total))
        if interrupt and seen.count(("main: cells", 6)) == 2:
            raise KeyboardInterrupt

    run_stages(path, list(names), folder / "bases", folder / "cells", 1, advance)
    return seen


def test_a_stage_with_complete_tables_is_not_run_again_without_its_cells(tmp_path):
    path = write_study(tmp_path, STAGE | {"settings": TINY, "recipe": RECIPE})
    publish(tmp_path)
    before = (path.parent / "main" / "results.parquet").read_bytes()
    assert missing_runs(path, tmp_path) == []
    assert (path.parent / "main" / "results.parquet").read_bytes() == before
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(("published", "left"), [(False, 1), (True, 5)])
def test_an_interruption_publishes_what_is_finished_unless_more_was_there(tmp_path, published, left):
    path = write_study(tmp_path, STAGE | {"settings": TINY, "recipe": RECIPE})
    if published:
        publish(tmp_path, {"on_policy": [0.5, 0.5, 0.5], "refill": [0.9, 0.9]})
    with pytest.raises(KeyboardInterrupt):
        missing_runs(path, tmp_path, interrupt=True)
    assert len(read_results(path.parent / "main").costs) == left


def test_no_stage_runs_when_one_of_the_names_is_unknown(tmp_path):
    path = write_study(tmp_path, STAGE | {"settings": TINY, "recipe": RECIPE})
    with pytest.raises(ValueError, match="no stage is called 'later'"):
        missing_runs(path, tmp_path, "main", "later")
    assert not (tmp_path / "cells").exists()


def test_an_unknown_stage_is_refused(tmp_path, capsys):
    path = write_study(tmp_path)
    assert cli.main(["lab", "evidence", str(path), "--run", "--stages", "later", "--jobs", "1"]) == 1
    assert "no stage is called 'later'" in capsys.readouterr().err


def published(where: str) -> list[str]:
    """Runs and final differences to on-policy of ExGRPO and the preset, from the tables behind a row of the README."""
    if not where.startswith("laboratory: "):
        rows = {row["variant"]: row for row in json.loads((EVIDENCE / "stack/report.json").read_text())["rows"]}
    else:
        family, base = where.removeprefix("laboratory: ").removesuffix(" base").split(", ")
        stage = {"chain": "main", "addition": "second_family", "ways": "several_solutions"}[family]
        summary = read_results(EVIDENCE / stage).summary("on_policy")
        rows = {row["variant"]: row for row in summary if (row["family"], row["base"]) == (family, base)}
    found = [rows[name] for name in ("exgrpo", "refill")]
    return [str(found[1]["pairs"]), *map(difference("final_difference"), found)]


def test_the_figures_in_the_readme_are_those_of_the_published_runs():
    readme = (EVIDENCE.parents[2] / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in readme.splitlines() if line.startswith("| ") and " ± " in line]
    assert len(rows) >= 5
    assert [row[1:] for row in rows] == [published(row[0]) for row in rows]


def test_the_rates_in_the_document_are_those_of_the_published_runs():
    results = read_table(EVIDENCE.parent / "tuned/rates" / RESULTS)
    best = best_rates(results)
    ends = results[results["step"] == results["step"].max()].groupby("variant").mean(numeric_only=True)
    rows = {}
    for (_, name), rate in best.items():
        means = [f"{ends.loc[label(name, x), 'pass_rate']:.3f}" for x in (1, 2, 3, 5)]
        costs = ends.loc[label(name, rate), ["fresh_rollouts", "updated_tokens", "scored_tokens"]]
        bold = [f"**{mean}**" if x == rate else mean for x, mean in zip((1, 2, 3, 5), means, strict=True)]
        rows[f"`{name}`"] = [*bold, *(f"{cost:,.0f}" for cost in costs)]
    text = (EVIDENCE.parents[1] / "evidence.md").read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert {first: rest for first, *rest in table} == rows
    assert len(rows) == 13
