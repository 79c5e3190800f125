"""Findings about agent loops and their tools."""

import pytest

from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.tools import tool_findings

AGENT, MULTI_TURN = "actor_rollout_ref.rollout.agent", "actor_rollout_ref.rollout.multi_turn"
TOOL_AGENT = f"{AGENT}.default_agent_loop=tool_agent"


@pytest.fixture
def texts(compose):
    """texts(*overrides) -> the findings, as (severity, text)."""
    return lambda *overrides: [
        (f.severity, f.text) for f in tool_findings(Run.of(compose("hardware=tiny", *overrides)))
    ]


@pytest.fixture
def tools(tmp_path):
    path = tmp_path / "tools.py"
    path.write_text("raise RuntimeError('a check runs nothing of the user's')\n")
    return f"{MULTI_TURN}.function_tool_path={path}"


def test_a_run_without_tools_and_one_with_a_tool_agent_pass(texts, tools):
    assert texts() == []
    assert texts(TOOL_AGENT, tools) == []


@pytest.mark.parametrize(
    "override",
    [f"{MULTI_TURN}.tool_config_path=gone.yaml", f"{MULTI_TURN}.function_tool_path=gone.py",
     f"{AGENT}.agent_loop_config_path=gone.yaml"],
)  # fmt: skip
def test_files_that_are_not_there_are_errors(texts, override):
    ((severity, text),) = texts(override)
    assert severity == "error"
    assert text == f"{override.split('=')[0]}: there is no file {override.split('=')[1]}."


def test_a_tool_agent_without_tools_is_an_error(texts):
    ((severity, text),) = texts(TOOL_AGENT)
    assert severity == "error"
    assert text.startswith(TOOL_AGENT)
    assert f"{MULTI_TURN}.function_tool_path" in text


def test_an_unknown_loop_is_an_error_until_its_file_is_named(texts, tmp_path):
    override = f"{AGENT}.default_agent_loop=mine"
    ((severity, text),) = texts(override)
    assert (severity, text[: len(override)]) == ("error", override)
    (tmp_path / "loops.yaml").write_text("- {name: mine, _target_: somewhere.Loop}\n")
    assert texts(override, f"{AGENT}.agent_loop_config_path={tmp_path / 'loops.yaml'}") == []


def test_a_loop_of_ones_own_takes_no_seeds(texts, tmp_path):
    (tmp_path / "loops.yaml").write_text("- {name: mine, _target_: somewhere.Loop}\n")
    settings = (f"{AGENT}.default_agent_loop=mine", f"{AGENT}.agent_loop_config_path={tmp_path / 'loops.yaml'}")
    ((severity, text),) = texts(*settings, "exgrpo.runtime.seeded_rollouts=true")
    assert severity == "error"
    assert text.startswith("exgrpo.runtime.seeded_rollouts: ")


@pytest.mark.parametrize("single", ["single_turn_agent", "seeded_single_turn"])
def test_tools_that_no_rollout_uses_are_a_warning(texts, tools, single):
    ((severity, text),) = texts(f"{AGENT}.default_agent_loop={single}", tools)
    assert severity == "warning"
    assert text.endswith("set it to tool_agent.")


def test_verls_old_switch_is_a_warning(texts, tools):
    assert [severity for severity, _ in texts(f"{MULTI_TURN}.enable=true")] == ["warning"]
    assert texts(TOOL_AGENT, tools, f"{MULTI_TURN}.enable=true") == []
