"""What the model sees of a run's tools: schemas as verl's agent loop has them, per row, and a fingerprint of all that."""

import json

import pytest
from omegaconf import OmegaConf

from verl_ext.tools import LIMITS, ToolSetup

FUNCTION = '''
from verl.tools.function_tool import function_tool

@function_tool
def {name}(expression: str) -> str:
    """{does}

    Args:
        expression: a sum.
    """
    return "{returns}"
'''


def config(agent="tool_agent", **multi_turn):
    limits = dict.fromkeys(LIMITS) | {"tool_config_path": None, "function_tool_path": None, "format": "hermes"}
    rollout = {"agent": {"default_agent_loop": agent}, "multi_turn": limits | multi_turn}
    return OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}})


@pytest.fixture
def setup(tmp_path):
    """setup(name, ...) -> the ToolSetup of a run with one function tool of that name; names are verl's for one process."""

    def make(name, does="A calculator.", returns="4", agent="tool_agent", **multi_turn):
        path = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}.py"
        path.write_text(FUNCTION.format(name=name, does=does, returns=returns))
        return ToolSetup.of(config(agent, function_tool_path=str(path), **multi_turn))

    return make


def test_without_tools_there_is_nothing_to_see():
    for agent in ("single_turn_agent", "seeded_single_turn", "tool_agent"):
        found = ToolSetup.of(config(agent))
        assert (found.fingerprint, found.schemas) == ("", {})
    assert ToolSetup.of(config("single_turn_agent")).shown({}) is None


@pytest.mark.verl
def test_schemas_are_those_that_verls_loop_puts_into_the_prompt(setup):
    from verl.tools.tool_registry import load_all_tools

    found = setup("shown_a")
    (schema,) = found.schemas.values()
    (tool,) = load_all_tools(None, str(_path_of("shown_a")))
    assert schema == tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True)
    json.dumps(schema)


def _path_of(name):
    from verl.tools.function_tool import FUNCTION_TOOL_REGISTRY

    return FUNCTION_TOOL_REGISTRY[name].fn.__code__.co_filename


def test_the_fingerprint_is_of_what_the_model_sees():
    schema = {"type": "function", "function": {"name": "f", "description": "A calculator."}}
    found = ToolSetup("tool_agent", {"f": schema}, {"max_user_turns": 3})
    assert found.fingerprint == ToolSetup("tool_agent", {"f": dict(schema)}, {"max_user_turns": 3}).fingerprint
    others = [
        ToolSetup("another", found.schemas, found.limits),
        ToolSetup("tool_agent", {"f": schema | {"strict": True}}, found.limits),
        ToolSetup("tool_agent", found.schemas, {"max_user_turns": 4}),
        ToolSetup("tool_agent", {}, found.limits),
    ]
    assert len({one.fingerprint for one in [found, *others]}) == 5


def test_seeds_and_bounds_change_nothing_that_the_model_sees():
    made = [ToolSetup.of(config(agent)).agent for agent in ("tool_agent", "bounded_tool", "seeded_tool")]
    assert made == ["tool_agent"] * 3


def test_a_row_chooses_its_loop_and_its_tools():
    schemas = {"a": {"name": "a"}, "b": {"name": "b"}}
    found = ToolSetup("tool_agent", schemas)
    assert found.shown({}) == [*schemas.values()]
    assert found.shown({"agent_name": "single_turn_agent"}) is None
    assert found.shown({"extra_info": {"tool_selection": ["b", "gone"]}}) == [{"name": "b"}]
    assert ToolSetup("single_turn_agent", schemas).shown({"agent_name": "tool_agent"}) == [*schemas.values()]


@pytest.mark.verl
def test_tools_that_cannot_be_loaded_are_named(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_the_kind\n")
    with pytest.raises(ValueError, match=r"rollout\.multi_turn: the tools of function_tool_path=.*broken\.py"):
        ToolSetup.of(config(function_tool_path=str(path)))
