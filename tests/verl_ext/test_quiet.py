"""Levels for a log that can be read, the switch that brings the rest back, and tracebacks that are said once."""

import importlib
import logging
import sys
import warnings

import pytest

from verl_ext.quiet import EXTERNAL, LEVELS, ROLLOUTS, Once, quiet, silence, verbose


@pytest.fixture(autouse=True)
def filters():
    with warnings.catch_warnings():
        yield


def test_levels_are_set_and_returned():
    env = {}
    assert quiet(env) == LEVELS | {EXTERNAL: ROLLOUTS} == env


def test_what_a_person_has_set_stays():
    env = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert quiet(env)["VLLM_LOGGING_LEVEL"] == env["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_modules_that_verl_imports_already_stay():
    env = {EXTERNAL: "verl_ext.platform.cpu"}
    for _ in range(2):
        assert quiet(env)[EXTERNAL] == env[EXTERNAL] == f"verl_ext.platform.cpu,{ROLLOUTS}"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("", False)])
def test_verbose_changes_nothing(value, expected):
    env = {"VERBOSE": value}
    assert verbose(env) is expected
    assert (quiet(env) == {}) is expected
    assert (env == {"VERBOSE": value}) is expected


@pytest.mark.parametrize(("value", "said"), [("1", "printed\n"), ("", "")])
def test_what_is_printed_is_left_out_unless_everything_is_to_be_said(monkeypatch, capsys, value, said):
    monkeypatch.setenv("VERBOSE", value)
    with silence():
        sys.stdout.write("printed\n")
        sys.stderr.write("logged\n")
    sys.stdout.write("after\n")
    out, err = capsys.readouterr()
    assert (out, err) == (f"{said}after\n", "logged\n")


def test_tracebacks_are_said_once_for_each_type_of_error(caplog):
    logger = logging.getLogger("test of once")
    logger.addFilter(Once())
    for uid in range(3):
        for error in (ValueError("dead"), KeyError("other")):
            try:
                raise error
            except (ValueError, KeyError) as raised:
                logger.error("Error for uid=%s", uid, exc_info=(type(raised), raised, raised.__traceback__))
    logger.error("without one")
    assert caplog.text.count("Traceback") == 2
    assert caplog.text.count("ValueError, as above") == caplog.text.count("KeyError, as above") == 2
    assert [record.getMessage() for record in caplog.records][-2:] == [
        "Error for uid=2: KeyError, as above",
        "without one",
    ]


@pytest.mark.verl
def test_verls_logger_of_failed_requests_has_the_filter():
    from verl.trainer.ppo.v1 import agent_loop_tq

    importlib.import_module(ROLLOUTS)
    assert any(isinstance(found, Once) for found in agent_loop_tq.logger.filters)
