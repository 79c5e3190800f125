"""Adaptive polling of verl's replay buffer, against a buffer that has its attributes and its waiting loop."""

import itertools
from collections import defaultdict

import pytest

from verl_ext.polling import AdaptivePoll, install
from verl_ext.watchdog import StalledError


class Buffer:
    """The attributes of verl's ReplayBuffer that its `_wait_for_next_poll` reads."""

    def __init__(self):
        self.partitions = defaultdict(dict)
        self.pending_keys, self.running_keys = defaultdict(set), defaultdict(set)
        self.finished_keys, self.failure_keys = defaultdict(set), defaultdict(set)

    def _wait_for_next_poll(self, partition_id, last_debug_time):
        raise AssertionError("still verl's own poll")


class Time:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now = 100.0
        self.slept = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def poll_for(buffer, stall_timeout_s=None, low=0.05, high=2.0):
    time = Time()
    return AdaptivePoll(buffer, stall_timeout_s, low, high, clock=time.clock, sleep=time.sleep), time


def wait(poll, time, seconds, last=0.0, partition="train"):
    """verl's loop: hand the last return value back until `seconds` have passed."""
    end = time.now + seconds
    while time.now < end:
        last = poll(partition, last)
    return last


def test_the_interval_grows_with_the_time_waited_between_its_bounds():
    poll, time = poll_for(Buffer())
    wait(poll, time, 200)
    assert time.slept[0] == 0.05
    assert time.slept[-1] == 2.0
    assert time.slept == sorted(time.slept)
    waited = sum(time.slept[:60])
    assert time.slept[60] == pytest.approx(max(0.05, 0.02 * waited))


def test_a_short_wait_costs_a_poll_of_50_ms_not_2_s():
    poll, time = poll_for(Buffer())
    wait(poll, time, 1.0)
    assert time.now - 100.0 == pytest.approx(1.0, abs=0.051)


def test_a_new_wait_starts_over():
    poll, time = poll_for(Buffer())
    wait(poll, time, 150, last=1.0)
    wait(poll, time, 0.04, last=2.0)
    assert time.slept[-1] == 0.05


def test_a_stalled_rollout_raises_with_the_counts():
    buffer = Buffer()
    buffer.pending_keys["train"] = {"a"}
    buffer.running_keys["train"] = {"b", "c"}
    buffer.partitions["train"] = {"d_0_0": {"status": "success"}}
    poll, time = poll_for(buffer, stall_timeout_s=30)
    with pytest.raises(StalledError, match="1 pending, 2 running, 0 finished, 0 failure, 1 trajectories") as stalled:
        wait(poll, time, 100)
    assert "'train'" in str(stalled.value)
    assert 30 <= time.now - 100.0 < 31


@pytest.mark.parametrize("off", [None, 0])
def test_without_a_limit_it_waits(off):
    poll, time = poll_for(Buffer(), stall_timeout_s=off)
    wait(poll, time, 10_000)


def test_any_change_restarts_the_limit():
    buffer = Buffer()
    poll, time = poll_for(buffer, stall_timeout_s=30)
    last = wait(poll, time, 25, last=1.0)
    buffer.running_keys["train"].add("a")
    last = wait(poll, time, 25, last)
    buffer.partitions["train"]["a_0_0"] = {"status": "success"}
    last = wait(poll, time, 25, last)
    buffer.partitions["train"]["a_0_0"]["seq_len"] = 7
    last = wait(poll, time, 25, last)
    buffer.running_keys["val"].add("b")  # another partition is no progress
    with pytest.raises(StalledError):
        wait(poll, time, 25, last)


def test_the_limit_is_of_one_wait_not_of_the_time_between_waits():
    poll, time = poll_for(Buffer(), stall_timeout_s=30)
    wait(poll, time, 20, last=1.0)
    time.now += 1000  # the trainer trains
    wait(poll, time, 20, last=2.0)


def test_install_replaces_the_poll_of_this_buffer_only():
    buffer, other = Buffer(), Buffer()
    poll = install(buffer, stall_timeout_s=5, min_interval_s=0.001, max_interval_s=0.002)
    assert buffer._wait_for_next_poll is poll
    assert buffer._wait_for_next_poll("train", 3.0) > 3.0  # reported: the last report was in 1970
    with pytest.raises(AssertionError, match="verl's own"):
        other._wait_for_next_poll("train", 3.0)


def test_another_class_is_refused():
    with pytest.raises(TypeError, match="_wait_for_next_poll"):
        install(object(), stall_timeout_s=5)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0)])
def test_impossible_intervals_are_refused(bounds):
    with pytest.raises(ValueError, match="0 < min <= max"):
        AdaptivePoll(Buffer(), None, *bounds)


def test_a_problem_ends_the_wait_with_its_name():
    time, looks = Time(), []

    def problem():
        looks.append(time.now)
        return "the engine is dead" if time.now > 105 else None

    poll = AdaptivePoll(Buffer(), 1800.0, 0.5, 0.5, problem, clock=time.clock, sleep=time.sleep)
    with pytest.raises(StalledError, match="rollout: the engine is dead"):
        wait(poll, time, 60)
    assert time.now < 108
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(looks))
