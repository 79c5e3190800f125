"""The first signal asks, the second ends, and time runs out."""

import os
import signal
import threading
import time

import pytest

from recipe.exgrpo.runs.stopping import NAME, OWN_GROUPS, SIGNALS, Signals, requested


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def start(tmp_path, handlers):
    """start(grace_s) -> installed Signals of the run in `tmp_path`."""
    made = []

    def make(grace_s: float | None = 600.0, **options) -> Signals:
        made.append(Signals(tmp_path, grace_s, **options))
        made[-1].install()
        return made[-1]

    yield make
    for signals in made:
        signals.close()


@pytest.mark.parametrize(("set_before", "value"), [(None, "1"), ("0", "0")])
def test_rays_workers_get_groups_of_their_own(start, monkeypatch, set_before, value):
    monkeypatch.delenv(OWN_GROUPS, raising=False)
    if set_before is not None:
        monkeypatch.setenv(OWN_GROUPS, set_before)
    start()
    assert os.environ[OWN_GROUPS] == value
    monkeypatch.setenv(OWN_GROUPS, value)  # so that it is taken back


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_ends(start, tmp_path, number, caplog):
    signals = start()
    assert not requested(tmp_path)
    os.kill(os.getpid(), number)
    assert requested(tmp_path)
    assert signals.first == number
    assert number.name in caplog.text
    assert "600 s" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert signals.code == 128 + number


def test_the_second_signal_may_be_another(start):
    signals = start()
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signals.first, signals.last, signals.code) == (signal.SIGUSR1, signal.SIGTERM, 143)


def test_the_end_of_the_grace_ends_as_a_second_signal_does(start, caplog):
    signals = start(0.2)
    began = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)
    assert time.monotonic() - began < 10
    assert signals.code == 143
    assert "stop_grace_s" in caplog.text


def test_without_a_grace_nothing_ends(start):
    start(None)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)


def test_a_process_that_does_not_unwind_is_left(start, monkeypatch):
    left = threading.Event()
    codes = []
    monkeypatch.setattr("recipe.exgrpo.runs.stopping.LEAVE_S", 0.1)
    start(leave=lambda code: (codes.append(code), left.set()))
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert left.wait(10)
    assert codes == [130]


def test_closing_withdraws_the_request_and_cancels_what_was_to_come(start, tmp_path):
    signals = start(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    signals.close()
    assert not requested(tmp_path)
    time.sleep(0.4)


def test_the_file_by_hand_is_a_request(tmp_path):
    (tmp_path / NAME).touch()
    assert requested(tmp_path)
