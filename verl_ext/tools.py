"""The tools of a run's agent loop, as far as the model sees them: schemas in its prompts, and the limits on what comes back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_ext.platform import prepare_environment

# Agent loops that show the model the same: verl's first, last the one with sampling seeds (agent_loops.yaml).
SINGLE_TURN = ("single_turn_agent", "seeded_single_turn")
TOOL_AGENTS = ("tool_agent", "bounded_tool", "seeded_tool")
PLAIN = {name: loops[0] for loops in (SINGLE_TURN, TOOL_AGENTS) for name in loops}
SEEDED = {name: loops[-1] for loops in (SINGLE_TURN, TOOL_AGENTS) for name in loops}
PATHS = ("tool_config_path", "function_tool_path")
# Keys of a trajectory's `extra_fields`: [start, stop) of what the model did not write; how many of its calls failed.
SPANS, FAILURES = "tool_spans", "tool_failures"
# Keys of `rollout.multi_turn` that decide what stands in a trajectory.
LIMITS = (
    *("format", "max_assistant_turns", "max_user_turns", "max_parallel_calls"),
    *("max_tool_response_length", "tool_response_truncate_side"),
)


@dataclass(frozen=True)
class ToolSetup:
    """`agent` is the agent loop of rows that name none, `schemas` are by the name of the tool, in verl's order."""

    agent: str = SINGLE_TURN[0]
    schemas: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig) -> "ToolSetup":
        """That of a run configuration. The files of its tools are run, as by verl; ValueError naming the key if they cannot."""
        rollout = config.actor_rollout_ref.rollout
        limits = OmegaConf.to_container(rollout.multi_turn, resolve=True)
        agent = rollout.agent.default_agent_loop
        return cls(PLAIN.get(agent, agent), _schemas(rollout.multi_turn), {name: limits.get(name) for name in LIMITS})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything here; "" without tools. What a tool computes is not in it."""
        if not self.schemas:
            return ""
        told = [self.agent, list(self.schemas.values()), self.limits]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def shown(self, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Schemas in the prompt of a row of the data (`extra_info.tool_selection` may name some); None in a single turn."""
        if (row.get("agent_name") or self.agent) in SINGLE_TURN:
            return None
        selection = (row.get("extra_info") or {}).get("tool_selection")
        if selection is None or not len(selection):
            return list(self.schemas.values())
        return [self.schemas[name] for name in selection if name in self.schemas]


def _schemas(multi_turn: DictConfig) -> dict[str, dict[str, Any]]:
    """verl's own, as its agent loop loads and dumps them."""
    paths = {name: multi_turn.get(name) for name in PATHS}
    if not any(paths.values()):
        return {}
    prepare_environment()
    from verl.tools.tool_registry import load_all_tools
    from verl.utils.import_utils import resolve_config_path

    try:
        tools = load_all_tools(**{name: path and resolve_config_path(path) for name, path in paths.items()})
    except Exception as problem:  # code of the user's may raise anything
        named = ", ".join(f"{name}={path}" for name, path in paths.items() if path)
        raise ValueError(
            f"actor_rollout_ref.rollout.multi_turn: the tools of {named} cannot be loaded ({problem})."
        ) from problem
    return {tool.name: tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools}
