"""Levels for a log that can be read, and the switch that brings the rest back."""

import warnings

import pytest

from verl_ext.quiet import LEVELS, quiet, verbose


@pytest.fixture(autouse=True)
def filters():
    with warnings.catch_warnings():
        yield


def test_levels_are_set_and_returned():
    env = {}
    assert quiet(env) == LEVELS == env


def test_what_a_person_has_set_stays():
    env = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert quiet(env)["VLLM_LOGGING_LEVEL"] == env["VLLM_LOGGING_LEVEL"] == "DEBUG"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("", False)])
def test_verbose_changes_nothing(value, expected):
    env = {"VERBOSE": value}
    assert verbose(env) is expected
    assert (quiet(env) == {}) is expected
    assert (env == {"VERBOSE": value}) is expected
