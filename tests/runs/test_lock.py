"""The lock of a run folder: two processes of one machine, dead ones, and other machines."""

import json
import os
import platform
import subprocess
import sys
import threading
import time

import pytest

from recipe.exgrpo.runs import lock
from recipe.exgrpo.runs.lock import LockedError, hold, holder

HOLD = """
import sys, time
from recipe.exgrpo.runs.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path):
    """A process that holds the lock of `tmp_path / "run"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def leave(folder, **record) -> None:
    """A record that nobody holds."""
    folder.mkdir(exist_ok=True)
    (folder / lock.NAME).write_text(json.dumps({"pid": 1234, "since": "2026-01-02 03:04:05+00:00"} | record))


def test_a_second_process_is_refused_in_one_sentence(owner, tmp_path):
    with pytest.raises(LockedError) as refusal, hold(tmp_path / "run"):
        pass
    text = str(refusal.value)
    assert text.startswith("trainer.default_local_dir: ")
    assert all(part in text for part in (str(owner.pid), platform.node(), "since 20", "RUN"))
    assert "\n" not in text
    assert holder(tmp_path / "run") == text


def test_a_refused_process_leaves_the_record_alone(owner, tmp_path):
    before = (tmp_path / "run" / lock.NAME).read_text()
    with pytest.raises(LockedError), hold(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / lock.NAME).read_text() == before


def test_the_lock_of_a_killed_process_is_taken_over_with_a_warning(owner, tmp_path, caplog):
    owner.kill()
    owner.wait()
    assert holder(tmp_path / "run") is None
    with hold(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / lock.NAME).read_text())["pid"] == os.getpid()
    assert str(owner.pid) in caplog.text
    assert "did not end in order" in caplog.text


def test_a_lock_let_go_is_taken_in_silence(tmp_path, caplog):
    for _ in range(2):
        with hold(tmp_path):
            pass
    assert caplog.text == ""
    assert (tmp_path / lock.NAME).read_text() == ""


def test_another_machine_that_has_stopped_is_taken_over(tmp_path, caplog):
    leave(tmp_path / "run", host="elsewhere")
    with hold(tmp_path / "run", watch_s=0.2):
        pass
    assert "elsewhere" in caplog.text


def test_another_machine_that_lives_is_refused(tmp_path):
    leave(tmp_path / "run", host="elsewhere")
    path, done = tmp_path / "run" / lock.NAME, threading.Event()

    def beat():
        while not done.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LockedError, match="1234 on elsewhere, since 2026"), hold(tmp_path / "run", watch_s=0.5):
            pass
    finally:
        done.set()
        thread.join()


def test_the_owner_touches_its_record(tmp_path):
    with hold(tmp_path, beat_s=0.05):
        before = (tmp_path / lock.NAME).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / lock.NAME).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_without_kernel_locks_a_living_process_of_this_machine_is_found_too(owner, tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.raises(LockedError, match=str(owner.pid)), hold(tmp_path / "run", watch_s=2 * lock.BEAT_S):
        pass


@pytest.mark.parametrize("content", ["", "not json", "[1]"])
def test_a_record_that_says_nothing_is_no_obstacle(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with hold(tmp_path):
        assert holder(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), hold(tmp_path / "file"):
        pass
