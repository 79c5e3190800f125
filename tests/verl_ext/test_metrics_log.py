"""metrics.jsonl: one object a step, whatever is logged and wherever the run is interrupted."""

import json
import subprocess
import sys

import numpy as np
import pytest

from verl_ext.metrics_log import JsonlLogger


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_a_step_is_one_flat_object_and_can_be_read_at_once(path):
    log = JsonlLogger(path)
    log.log({"batch/pass_rate": 0.5, "experience/added": np.int64(3)}, step=1)
    log.log({"actor/lr": np.float32(0.5), "note": "x", "replay": np.bool_(True)}, step=2)
    assert read(path) == [
        {"step": 1, "batch/pass_rate": 0.5, "experience/added": 3},
        {"step": 2, "actor/lr": 0.5, "note": "x", "replay": True},
    ]


def test_torch_scalars_are_numbers(path):
    torch = pytest.importorskip("torch")
    JsonlLogger(path).log({"loss": torch.tensor(0.25), "n": torch.tensor(2)}, step=1)
    assert read(path) == [{"step": 1, "loss": 0.25, "n": 2}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan"), None])
def test_what_json_has_no_number_for_becomes_null(path, value):
    JsonlLogger(path).log({"grad_norm": value}, step=1)
    assert "null" in path.read_text()
    assert read(path) == [{"step": 1, "grad_norm": None}]


def test_other_shapes_are_left_out_with_one_warning(path, caplog):
    log = JsonlLogger(path)
    for step in (1, 2):
        log.log({"table": [1, 2], "array": np.zeros(3), "kept": 1}, step=step)
    assert read(path) == [{"step": 1, "kept": 1}, {"step": 2, "kept": 1}]
    assert len(caplog.records) == 2
    assert "table" in caplog.text


def test_reopening_appends(path):
    first = JsonlLogger(path)
    first.log({"a": 1}, step=1)
    first.finish()
    JsonlLogger(path).log({"a": 2}, step=2)
    assert [row["step"] for row in read(path)] == [1, 2]


@pytest.mark.parametrize("torn", ['{"step": 3, "a', '{"step": 3, "a": 1}', "\x00\x00"])
def test_a_torn_last_line_is_cut(path, torn):
    first = JsonlLogger(path)
    first.log({"a": 1}, step=1)
    with path.open("a") as file:
        file.write(torn)
    again = JsonlLogger(path)
    assert read(path) == [{"step": 1, "a": 1}]
    again.log({"a": 2}, step=2)
    assert [row["step"] for row in read(path)] == [1, 2]


def test_a_line_is_on_disk_when_the_process_is_killed(path):
    code = f"import os; from verl_ext.metrics_log import JsonlLogger; log = JsonlLogger({str(path)!r});"
    subprocess.run([sys.executable, "-c", code + "log.log({'a': 1}, 1); os.kill(os.getpid(), 9)"], check=False)
    assert read(path) == [{"step": 1, "a": 1}]


def test_rewind_drops_later_steps_only(path):
    log = JsonlLogger(path)
    for step in range(1, 6):
        log.log({"a": step}, step=step)
    before = path.stat().st_ino
    log.rewind(3)
    assert [row["step"] for row in read(path)] == [1, 2, 3]
    assert path.stat().st_ino != before  # by rename
    log.log({"a": 40}, step=4)
    assert read(path)[-1] == {"step": 4, "a": 40}


def test_what_rewind_drops_stays_in_a_copy(path, caplog):
    log = JsonlLogger(path)
    copies = []
    for round_ in range(3):
        for step in range(2, 6):
            log.log({"a": step, "round": round_}, step=step)
        copies.append(path.read_text())
        log.rewind(-1 if round_ == 1 else 1)
    assert [path.with_name(f"metrics.before-00{i}.jsonl").read_text() for i in range(3)] == copies
    assert read(path) == []
    assert "4 lines" in caplog.text
    assert "metrics.before-000.jsonl" in caplog.text


def test_a_copy_never_takes_the_place_of_another(path):
    """Somebody tidied up the first one."""
    log = JsonlLogger(path)
    for value in range(3):
        log.log({"a": value}, step=2)
        log.rewind(1)
        if value == 1:
            path.with_name("metrics.before-000.jsonl").unlink()
    assert [read(path.with_name(f"metrics.before-00{i}.jsonl"))[0]["a"] for i in (1, 2)] == [1, 2]


def test_rewind_that_drops_nothing_leaves_no_copy(path):
    log = JsonlLogger(path)
    log.log({"a": 1}, step=1)
    log.rewind(1)
    log.rewind(7)
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


def test_rewind_of_a_new_file_and_to_before_the_first_step(path):
    log = JsonlLogger(path)
    log.rewind(0)
    log.log({"a": 1}, step=1)
    log.rewind(0)
    assert read(path) == []
    log.log({"a": 1}, step=1)
    assert len(read(path)) == 1


def test_validation_before_the_resumed_training_joins_the_line_of_its_step(path):
    first = JsonlLogger(path)
    first.log({"a": 1}, step=1)
    first.log({"a": 2, "val/pass_rate": 0.1}, step=2)
    first.finish()
    again = JsonlLogger(path)
    again.rewind(2)
    again.log({"val/pass_rate": 0.3}, step=2)
    assert read(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2, "val/pass_rate": 0.3}]
    again.log({"a": 3}, step=3)
    assert [row["step"] for row in read(path)] == [1, 2, 3]


def test_going_back_without_rewind_is_an_error(path):
    log = JsonlLogger(path)
    log.log({"a": 1}, step=7)
    with pytest.raises(ValueError, match=r"step 3 after step 7; call rewind\(3\)"):
        log.log({"a": 1}, step=3)


@pytest.mark.parametrize("line", ["no json", "[1]", '{"a": 1}', '{"step": "x"}'])
def test_a_foreign_file_is_refused_by_line(path, line):
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        JsonlLogger(path)
