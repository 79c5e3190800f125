"""The watchdog interrupts, unwinds and leaves nothing behind."""

import asyncio
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from verl_ext.watchdog import EXIT_CODE, SIGNAL, StalledError, Watchdog


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("watchdog")]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = signal.getsignal(SIGNAL)
    yield
    assert signal.getsignal(SIGNAL) is before
    assert names() == []


def test_a_section_within_its_time_passes_and_is_watched_while_it_runs():
    with Watchdog(5).guard("rollout"):
        assert names() == ["watchdog: rollout"]


def test_a_stalled_section_raises_with_its_name_the_limit_and_the_line(caplog):
    start = time.monotonic()
    with caplog.at_level(logging.ERROR), pytest.raises(StalledError) as stalled:
        with Watchdog(0.2).guard("weight sync"):
            time.sleep(30)
    assert time.monotonic() - start < 5
    assert str(stalled.value).startswith("weight sync made no progress for 0.2 s: ")
    assert "time.sleep(30)" in str(stalled.value)
    assert "test_watchdog.py" in caplog.text


@pytest.mark.parametrize("limit", [600, None])
def test_a_problem_ends_a_section_long_before_its_time(limit):
    start = time.monotonic()
    with pytest.raises(StalledError, match=r"weight sync: the engine is dead$"):
        with Watchdog(limit).guard("weight sync", lambda: "the engine is dead"):
            time.sleep(30)
    assert time.monotonic() - start < 10


def test_no_problem_changes_nothing():
    with Watchdog(None).guard("weight sync", lambda: None):
        assert names() == ["watchdog: weight sync"]


@pytest.mark.parametrize("wait", [lambda: asyncio.run(asyncio.sleep(30)), lambda: threading.Event().wait(30)])
def test_event_loops_and_locks_are_interrupted(wait):
    with pytest.raises(StalledError), Watchdog(0.2).guard("weight sync"):
        wait()


@pytest.mark.parametrize("off", [None, 0])
def test_no_limit_starts_no_thread_and_installs_no_handler(off):
    before = signal.getsignal(SIGNAL)
    with Watchdog(off).guard("rollout"):
        assert names() == []
        assert signal.getsignal(SIGNAL) is before


def test_errors_of_the_section_pass_through():
    with pytest.raises(KeyError), Watchdog(5).guard("rollout"):
        raise KeyError("x")


def test_a_section_that_turns_the_interrupt_into_another_error_has_stalled_all_the_same():
    def update():
        try:
            time.sleep(30)
        finally:
            raise OSError("connection lost")

    with pytest.raises(StalledError, match="weight sync") as stalled, Watchdog(0.2).guard("weight sync"):
        update()
    assert isinstance(stalled.value.__cause__, OSError)


def test_an_outer_guard_still_works_after_an_inner_one():
    def step():
        with Watchdog(5).guard("rollout"):
            pass
        time.sleep(30)

    with pytest.raises(StalledError, match="step made no progress"), Watchdog(0.4).guard("step"):
        step()


def test_an_outer_guard_reaches_into_an_inner_one():
    with pytest.raises(StalledError, match="step made no progress"), Watchdog(0.2).guard("step"):
        with Watchdog(5).guard("rollout"):
            time.sleep(30)


def test_other_threads_are_refused():
    refused = []

    def guard():
        try:
            with Watchdog(5).guard("rollout"):
                pass
        except RuntimeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=guard)
    thread.start()
    thread.join()
    assert "main thread" in refused[0]


@pytest.mark.parametrize("limits", [{"timeout_s": -1}, {"timeout_s": 1, "grace_s": -1}])
def test_negative_limits_are_refused(limits):
    with pytest.raises(ValueError, match="0 s or more"):
        Watchdog(**limits)


def test_ctrl_c_stays_ctrl_c():
    with pytest.raises(KeyboardInterrupt), Watchdog(5).guard("rollout"):
        signal.raise_signal(signal.SIGINT)


def test_a_section_that_swallows_the_interrupt_ends_the_process():
    code = """
        import time
        from verl_ext.watchdog import Watchdog

        with Watchdog(0.2, grace_s=0.3).guard("weight sync"):
            try:
                time.sleep(30)
            except KeyboardInterrupt:
                print("swallowed", flush=True)
            time.sleep(30)
    """
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (EXIT_CODE, "swallowed")
    assert "this process ends now" in done.stderr
    assert time.monotonic() - start < 20
