"""Delayed start: on after the pass rate first exceeds the threshold, and never off again."""

import pytest

from recipe.exgrpo.core.schedule import DelayedStart


def history(threshold, rates):
    """Whether replay is on in each step, before that step's pass rate is known."""
    schedule, active = DelayedStart(threshold), []
    for rate in rates:
        active.append(schedule.active)
        schedule.observe(rate)
    return active


@pytest.mark.parametrize(
    ("threshold", "rates", "active"),
    [
        (0.35, [0.1, 0.36, 0.1, 0.0, 0.0], [False, False, True, True, True]),
        (0.35, [0.35, 0.35, 0.35], [False, False, False]),
        (0.35, [0.9, 0.0], [False, True]),
        (0.0, [0.0, 0.01, 0.0], [False, False, True]),
        (None, [0.0, 0.0], [True, True]),
        (0.35, [float("nan"), 0.5, 0.0], [False, False, True]),
    ],
)
def test_starts_on_the_step_after_and_stays(threshold, rates, active):
    assert history(threshold, rates) == active
