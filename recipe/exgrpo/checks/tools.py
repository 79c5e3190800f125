"""Checks of agent loops and their tools; nothing of theirs is run."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf
from yaml import YAMLError

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from verl_ext.tools import PATHS, SEEDED, SINGLE_TURN, TOOL_AGENTS

MULTI_TURN, AGENT = "actor_rollout_ref.rollout.multi_turn", "actor_rollout_ref.rollout.agent"


def agent_loops(run: Run) -> list[str]:
    """Names of the loops that a row may ask for: verl's, ours, and those of the run's own file."""
    return [*SEEDED, *_own_loops(run.rollout.agent.agent_loop_config_path)]


def _own_loops(path: str | None) -> list[str]:
    try:
        return [entry.name for entry in OmegaConf.load(path)] if path else []
    except (OSError, YAMLError, AttributeError):
        return []


def tool_findings(run: Run) -> Iterator[Finding]:
    """Files that are not there, a loop with tools that has none, tools that no loop asks for, a loop that is not known."""
    paths = {f"{MULTI_TURN}.{name}": run.rollout.multi_turn.get(name) for name in PATHS}
    own, chosen = run.rollout.agent.agent_loop_config_path, run.rollout.agent.default_agent_loop
    for key, path in (paths | {f"{AGENT}.agent_loop_config_path": own}).items():
        if path and not Path(path).is_file():
            yield error(f"{key}: there is no file {path}.")
            return
    if chosen not in agent_loops(run):
        yield error(
            f"{AGENT}.default_agent_loop={chosen} is not one of {', '.join(agent_loops(run))}; name the loop's file in "
            f"{AGENT}.agent_loop_config_path."
        )
    elif run.settings.runtime.seeded_rollouts and chosen not in SEEDED:
        yield error(
            f"exgrpo.runtime.seeded_rollouts: {AGENT}.default_agent_loop={chosen} takes no seeds; set it to false."
        )
    elif chosen in TOOL_AGENTS and not any(paths.values()):
        yield error(f"{AGENT}.default_agent_loop={chosen} has no tools: set {' or '.join(paths)}.")
    elif chosen in SINGLE_TURN and any(paths.values()):
        yield warning(
            f"{MULTI_TURN} names tools, and rollouts are of {AGENT}.default_agent_loop={chosen}, which has none, but for rows "
            f"with an agent_name: set it to {TOOL_AGENTS[0]}."
        )
    if run.rollout.multi_turn.enable and chosen in SINGLE_TURN:
        yield warning(
            f"{MULTI_TURN}.enable says nothing to verl's V1 trainer; {AGENT}.default_agent_loop={chosen} does."
        )
