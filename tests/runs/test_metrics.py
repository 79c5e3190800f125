"""A run read back from its folder: metrics by step, and the settings of its newest start."""

import json
from pathlib import Path

import pytest
import yaml

from recipe.exgrpo.runs.metrics import read_run

ROWS = [
    {"step": 0, "val/pass_rate": 0.25},
    {"step": 1, "batch/questions": 4, "actor/entropy": None},
    {"step": 2, "batch/questions": 4, "actor/entropy": 0.5, "val/pass_rate": 0.5},
]


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def start(run: Path, number: int, config: dict, changed: list[str]) -> None:
    folder = run / f"record/start-{number:03d}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"git": {"commit": "0123456789abcdef", "changed": changed}}))


def test_a_metric_has_a_value_at_the_steps_that_logged_a_number(run):
    found = read_run(run)
    assert found.values("batch/questions").to_dict() == {1: 4.0, 2: 4.0}
    assert found.values("actor/entropy").to_dict() == {2: 0.5}
    assert found.values("never/logged").empty
    assert found.validation.to_dict() == {0: 0.25, 2: 0.5}
    assert (found.last_step, found.torn) == (2, False)


def test_settings_and_commit_are_those_of_the_newest_start(run):
    start(run, 0, {"data": {"seed": 7}, "exgrpo": {"seed": 1}}, ["README.md"])
    start(run, 1, {"data": {"seed": 7}, "exgrpo": {"seed": None}, "actor_rollout_ref": {"rollout": {"n": 8}}}, [])
    found = read_run(run)
    assert (found.starts, found.commit, found.group_size) == (2, "012345678", 8)
    assert found.seed == 7  # that of the data where the policy has none of its own


def test_without_a_record_seed_commit_and_group_size_are_unknown(run):
    found = read_run(run)
    assert (found.settings, found.starts, found.seed, found.commit, found.group_size) == ({}, 0, None, None, None)


@pytest.mark.parametrize("step", [2, 1])
def test_steps_that_do_not_rise_are_refused(run, step):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    with pytest.raises(ValueError, match="steps do not rise"):
        read_run(run)
