"""`exgrpo doctor --quick` on the real stack (CPU): two starts, ExGRPO with a checkpoint and its resume."""

import json
import os
import subprocess
import sys

import pytest

from recipe.exgrpo.presets.compose import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.long]
LIMIT_S = 900


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """(exit code, doctor.json, its folder), of a shell with a secret in it."""
    out = tmp_path_factory.mktemp("doctor") / "out"
    command = [sys.executable, "-m", "recipe.exgrpo.cli.main", "doctor", "--quick", "--json", "--out", str(out)]
    env = os.environ | {"HF_TOKEN": "not-to-be-told-to-anybody"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done, json.loads(done.stdout), out


@pytest.fixture(scope="module")
def verdicts(examined):
    return {(one["section"], one["check"]): one for one in examined[1]["verdicts"]}


def test_nothing_failed(examined, verdicts):
    assert [one for one in verdicts.values() if one["verdict"] in ("failed", "skipped")] == []
    assert examined[0].returncode == 0
    assert examined[1]["complete"]
    assert ("machine", "collective") in verdicts


def test_every_figure_is_of_the_runs(examined, verdicts):
    _, _, out = examined
    rows = [json.loads(line) for line in (out / "toy-exgrpo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    exgrpo, resume = (verdicts["toy", f"{kind} replay"]["figures"]["replayed_rows"] for kind in ("exgrpo", "resume"))
    assert (exgrpo, resume) == (rows[1]["experience/replayed_rows"], rows[2]["experience/replayed_rows"])
    assert verdicts["toy", "exgrpo speed"]["figures"]["tokens_per_second"] == rows[1]["perf/throughput"] > 0
    assert 0 < verdicts["toy", "exgrpo log-probs"]["figures"]["gap_nats"] < 1e-4


def test_memory_is_of_all_processes_of_the_run(verdicts):
    """Trainer, engine and Ray together; one of them alone has less than 2 GiB, and the trainer says what it has."""
    figures = verdicts["toy", "exgrpo memory"]["figures"]
    assert 1.5 < figures["start_gib"] < figures["start_estimate_gib"]
    assert figures["start_gib"] > figures["trainer_allocated_gib"]


def test_what_is_left_is_small_and_names_nobody(examined):
    _, _, out = examined
    assert list(out.rglob("global_step_*")) == []
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 5e6
    for name in ("doctor.json", "doctor.txt"):
        text = (out / name).read_text()
        assert str(out) not in text
        assert "not-to-be-told" not in text
