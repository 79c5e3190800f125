"""What a person who waits for an evaluation is told about the time left."""

import io

import pytest
from rich.console import Console

from verl_ext.evaluation import meter
from verl_ext.evaluation.meter import Meter


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(meter, "time", found)
    return found


def test_the_start_of_the_engines_is_no_pace(clock):
    """Ten minutes of start, then a sample a second of 240: the first line once said 556 minutes of these four."""
    console = Console(file=io.StringIO(), width=200)
    with Meter(console, done=0, total=240) as found:
        clock.now += 600
        said = {}
        for second in range(240):
            found.advance(1, 100)
            said[second] = found.line()
            clock.now += 1
    assert all("time left not known yet" in said[second] for second in range(20))
    assert "about 4 min left" in said[25]
    assert "about 2 min left" in said[120]
    assert "about 0 min left" in said[239]
    assert "556" not in console.file.getvalue()
    assert "240 of 240 samples" in console.file.getvalue() + found.line()


def test_samples_of_an_earlier_session_do_not_count_for_the_pace(clock):
    found = Meter(Console(file=io.StringIO()), done=900, total=1000)
    for _ in range(41):
        found.advance(1, 10)
        clock.now += 2
    assert found.left_s == pytest.approx(2 * 59, rel=0.05)
    assert found.line().startswith("generating: 941 of 1,000 samples")


def test_nothing_is_said_before_a_second_burst(clock):
    found = Meter(Console(file=io.StringIO()), done=0, total=100)
    assert found.left_s is None
    found.advance(16, 100)
    clock.now += 3600
    assert found.left_s is None
