"""The last lines of a run name what was done, where it is, and what to do next."""

import pytest
from ray.exceptions import RayTaskError
from run_folders import save

from recipe.exgrpo.runs import summary
from recipe.exgrpo.runs.folder import TRACKER
from verl_ext.metrics_log import JsonlLogger


@pytest.fixture
def run(tmp_path):
    """A run that logged 6 steps and saved the fourth."""
    log = JsonlLogger(tmp_path / "run/metrics.jsonl")
    for step in range(1, 7):
        log.log({"a": 1}, step)
    save(tmp_path / "run", 4)
    return tmp_path / "run"


def test_a_finished_run_names_its_checkpoint_and_the_next_command(run):
    text = summary.done(run, 6)
    assert text == f"done, step 6 of 6: {run}. Newest checkpoint: {run}/global_step_4. Next: exgrpo report {run}"


def test_a_run_that_was_stopped_says_that_the_same_command_resumes(run):
    text = summary.done(run, 10, asked=True)
    assert text.startswith(f"{summary.EARLY} after step 6 of 10: {run}")
    assert "global_step_4; the same command resumes from it" in text


def test_a_run_that_was_asked_to_stop_in_its_last_step_is_done(run):
    assert summary.done(run, 6, asked=True).startswith("done")


def test_a_run_without_a_number_of_steps(run):
    assert summary.done(run, None).startswith("done, step 6:")
    assert summary.done(run, None, asked=True).startswith(summary.EARLY)


def test_a_failed_run_ends_with_its_cause(run):
    text = summary.failed(run, "EngineDiedError: vLLM's engine is dead")
    assert "after step 6" in text
    assert text.endswith("Cause: EngineDiedError: vLLM's engine is dead")


def test_a_folder_with_nothing_in_it(tmp_path):
    assert "after step 0" in summary.failed(tmp_path, "x")
    assert "No checkpoint was saved" in summary.failed(tmp_path, "x")


def test_a_broken_tracker_is_said(run):
    (run / TRACKER).write_text("")
    assert "is empty" in summary.failed(run, "x")


def test_the_cause_is_below_the_tracebacks_of_other_processes():
    inner = RayTaskError("update", "Traceback of a worker\n" * 50, ValueError("the disk\nis full"))
    outer = RayTaskError("run", "Traceback of the task runner\n" * 50, inner)
    assert summary.cause_of(outer.as_instanceof_cause()) == "ValueError: the disk is full"
    assert summary.cause_of(RuntimeError()) == "RuntimeError: no message"
    assert len(summary.cause_of(RuntimeError("x" * 10_000))) < 1000
