"""Checks of where rewards come from: a function, or a model."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from recipe.exgrpo.checks.findings import Finding, error, warning
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import is_missing

OUR_MANAGER = ("pkg://verl_ext.rewards.manager", "RewardManager")  # exgrpo_trainer.yaml


def reward_findings(run: Run) -> Iterator[Finding]:
    """A reward function or model that is not there; and a reward model on GPUs of its own, which verl 0.9.1 puts to sleep at
    the start and wakes in the shared mode only."""
    reward = run.config.reward
    model, path = reward.reward_model, reward.custom_reward_function.path
    if path and not _is_module(path):
        yield error(f"reward.custom_reward_function.path: there is no {path}; name a python file or pkg://MODULE.")
    yield from _manager_findings(reward.reward_manager)
    if model.enable and is_missing(str(model.model_path)):
        yield error(
            f"reward.reward_model.model_path: the folder {model.model_path} does not exist; set REWARD_MODEL to a folder or "
            "hub id."
        )
    if model.enable and model.enable_resource_pool and model.rollout.free_cache_engine:
        yield warning(
            "reward.reward_model.rollout.free_cache_engine is true with enable_resource_pool: the reward model sleeps "
            "when it is asked; set it to false."
        )


def _manager_findings(manager) -> Iterator[Finding]:
    """The keys source, name and module.path only make sense together: an override of one of them ends in verl's assertions."""
    path, ours = manager.module.path, OUR_MANAGER[1]
    if manager.source == "register":
        if manager.name == ours:
            yield error(
                f"reward.reward_manager.name: {ours} is not registered in verl; name one that is, such as naive."
            )
    elif not path or not _is_module(path):
        yield error(f"reward.reward_manager.module.path: there is no {path}; name a python file or pkg://MODULE.")
    elif path == OUR_MANAGER[0] and manager.name != ours:
        yield error(
            f"reward.reward_manager.name: {path} has no {manager.name}; a manager of verl's needs "
            "reward.reward_manager.source=register as well."
        )


def _is_module(path: str) -> bool:
    """Whether verl would find it. Nothing is imported: that could be verl itself, before its platform is chosen."""
    if not path.startswith("pkg://"):
        return Path(path.removeprefix("file://")).is_file()
    package, *inner = path.removeprefix("pkg://").replace("/", ".").split(".")
    spec = importlib.util.find_spec(package)
    if not inner:
        return spec is not None
    places = [Path(place, *inner) for place in (spec and spec.submodule_search_locations) or ()]
    return any(place.is_dir() or place.with_name(f"{place.name}.py").is_file() for place in places)
