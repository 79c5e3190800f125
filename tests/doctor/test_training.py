"""A start as a child process: followed, ended at its limit with all that it started, its memory laid onto its phases."""

import json
import os
import time

import psutil
import pytest

from recipe.exgrpo.doctor import training
from recipe.exgrpo.doctor.plan import Device, starts
from recipe.exgrpo.doctor.process import ask
from recipe.exgrpo.doctor.sampling import peaks, sampled, tree_bytes
from recipe.exgrpo.doctor.training import train


@pytest.fixture
def script(tmp_path, monkeypatch):
    """script(text) -> a start of the toy task (its resume, of a run that has two rows) whose script is this text."""

    def write(text: str):
        path = tmp_path / "script.sh"
        path.write_text(text)
        monkeypatch.setattr(training, "SCRIPT", path)
        monkeypatch.setattr(training, "GRACE_S", 0.3)
        start = starts("toy", tmp_path / "out", Device("cpu"))[2]
        start.run.mkdir(parents=True)
        (start.run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        return start

    return write


def test_rows_of_this_start_alone_are_followed(script):
    row = json.dumps({"step": 3, "timing_s/step": 1.0})
    start = script(
        f"echo begun; sleep 0.2; echo '{row}' >>$RUN/metrics.jsonl; sleep 0.8; echo $HARDWARE $STEPS $PYTHON"
    )
    told = []
    outcome = train(start, 30, lambda: 5.0, told.append)
    assert outcome.code == 0
    assert list(outcome.metrics) == [3]
    assert told == ["starting Ray, FSDP and vLLM", "step 3 of 3"]
    assert outcome.log[0] == "begun"
    assert outcome.log[1].startswith("cpu 3 /")
    assert {size for _, size in outcome.memory} == {5.0}
    seen = outcome.rows[0][0]
    assert outcome.memory[0][0] <= seen <= time.time() - 0.3, "when it was written, not when it was read"


def test_the_cause_is_the_runs_own(script):
    start = script("echo 'ended after step 0: RUN. Cause: ValueError: no'; echo later; exit 1")
    outcome = train(start, 30, lambda: 0.0, lambda _: None)
    assert (outcome.code, outcome.cause) == (1, "ValueError: no")


def test_a_refusal_is_its_last_line(script):
    start = script("echo one; printf 'trainer.device is cuda \\033[1mand\\n'; exit 2")
    outcome = train(start, 30, lambda: 0.0, lambda _: None)
    assert (outcome.code, outcome.cause) == (2, "trainer.device is cuda \\x1b[1mand")


def gone(process: int) -> bool:
    """Whether a killed process has ended within ten seconds; on a busy machine it does not at once."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_at_its_limit_a_start_ends_with_all_that_it_started(script, tmp_path):
    start = script(f"trap '' TERM; sleep 300 & echo $! >{tmp_path}/child; echo waiting; while :; do sleep 0.1; done")
    outcome = train(start, 1.0, lambda: 0.0, lambda _: None)
    assert outcome.code is None
    assert outcome.cause.endswith("its last line: waiting")
    child = int((tmp_path / "child").read_text())
    assert gone(child)


def test_a_question_to_a_process_has_an_end(tmp_path):
    assert ask(["bash", "-c", "echo said; exit 3"], 30).code == 3
    slow = ask(["bash", "-c", f"sleep 300 & echo $! >{tmp_path}/child; echo why >&2; wait"], 0.5)
    assert (slow.code, slow.last_word) == (None, "why")
    child = int((tmp_path / "child").read_text())
    assert gone(child)


# ---- memory


def test_peaks_are_those_of_each_phase():
    """Two steps of 4 s, the first of them rollout and the last weight sync, written at 104 and 108; edges are nobody's."""
    timing = {"timing_s/step": 4.0, "timing_s/gen": 1.0, "timing_s/update_weights": 1.0}
    rows = [(written, timing) for written in (104.0, 108.0)]
    samples = [
        (90.0, 1.0),
        (99.5, 3.0),
        (100.5, 7.0),
        (101.5, 4.0),
        (102.5, 5.0),
        (103.1, 88.0),
        (103.5, 8.0),
        (104.5, 9.0),
        (107.0, 2.0),
        (108.5, 99.0),
    ]
    assert peaks(samples, rows) == {"start": 3.0, "rollout": 9.0, "update": 5.0}


def test_a_phase_between_two_samples_has_no_peak():
    rows = [(104.0, {"timing_s/step": 4.0, "timing_s/gen": 1.0})]
    assert peaks([(90.0, 1.0), (103.0, 2.0)], rows) == {"start": 1.0, "rollout": None, "update": 2.0}


def test_a_run_without_a_step_is_all_start():
    assert peaks([(90.0, 1.0), (103.0, 2.0)], []) == {"start": 2.0, "rollout": None, "update": None}


def test_memory_of_this_process_grows_with_what_it_takes():
    with sampled(lambda: tree_bytes(os.getpid()), interval_s=0.02) as samples:
        while not samples:
            time.sleep(0.01)
        before, held = samples[-1][1], bytearray(b"\x01" * (64 << 20))
        count = len(samples)
        while len(samples) < count + 2:
            time.sleep(0.01)
    assert samples[-1][1] - before > 0.9 * len(held)


def test_memory_that_cannot_be_read_ends_the_samples():
    def read() -> float:
        raise OSError("no nvidia-smi")

    with sampled(read, interval_s=0.001) as samples:
        time.sleep(0.02)
    assert samples == []
    assert tree_bytes(2**22 + 1) == 0.0, "a process that is gone"


def test_only_the_end_of_a_log_is_kept(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % i for i in range(100)) + b"10%\r50%\r100%\n\n\xff\n")
    lines = training.last_lines(log)
    assert len(lines) == training.TAIL
    assert lines[-3:] == ["line 99", "100%", "�"]
