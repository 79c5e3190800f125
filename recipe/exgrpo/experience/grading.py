"""The run's reward on text from elsewhere: a function in verl's signature, called as verl calls it, several at a time."""

import asyncio
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

MAX_WORKERS = 8  # the grading processes of this package take a core each


@dataclass(frozen=True)
class Graded:
    """A reward, and `trouble`: "timeout" or "error" when the grader did not finish, else None."""

    reward: float
    trouble: str | None = None


@dataclass(frozen=True)
class Grading:
    """`function(data_source, solution_str, ground_truth, extra_info=..., **kwargs)`, on `workers` threads."""

    function: Callable[..., Any]
    kwargs: Mapping[str, Any]
    workers: int = 1

    @classmethod
    def of(cls, reward: DictConfig, workers: int | None = None) -> "Grading":
        """That of a run's `reward` node. Raises ValueError where it is a model, or the function cannot be loaded."""
        require_function(reward)
        chosen = reward.custom_reward_function
        function = _default() if chosen.path is None else _function(str(chosen.path), chosen.name)
        kwargs = OmegaConf.to_container(chosen.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
        workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
        if getattr(function, "__module__", "") == "verl_ext.rewards":
            kwargs = {"workers": workers} | kwargs
        return cls(function, kwargs, workers)

    def grade(self, answers: Iterable[tuple[Mapping[str, Any], str, bool]]) -> list[Graded]:
        """Rewards of (row of the dataset in verl's schema, text, whether it was cut off), in their order."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._one, answers))

    def call(self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping | None = None) -> dict:
        """One call of the function, whatever it returns, as a mapping with `score`."""
        found = self.function(
            data_source=data_source, solution_str=solution_str, ground_truth=ground_truth, extra_info=extra_info,
            **self.kwargs,
        )  # fmt: skip
        if inspect.isawaitable(found):
            found = asyncio.run(_result(found))
        return found if isinstance(found, Mapping) else {"score": float(found)}

    def _one(self, answer: tuple[Mapping[str, Any], str, bool]) -> Graded:
        row, text, truncated = answer
        info = {**(row.get("extra_info") or {}), "truncated": truncated}
        found = self.call(row["data_source"], text, row["reward_model"]["ground_truth"], info)
        return Graded(float(found["score"]), next((name for name in ("timeout", "error") if found.get(name)), None))


def require_function(reward: DictConfig) -> None:
    """Raise ValueError where a run's `reward` node leaves rewards to a model."""
    if reward.custom_reward_function.path is None and reward.reward_model.enable:
        raise ValueError("reward: a model gives this run's rewards, and traces cannot be graded before it is there.")


async def _result(found: Any) -> Any:
    return await found


def _function(path: str, name: str) -> Callable[..., Any]:
    """`name` in a python file or `pkg://module`, as verl's `load_extern_object` finds it, whose import takes seconds."""
    try:
        if path.startswith("pkg://"):
            module = importlib.import_module(path.removeprefix("pkg://").replace("/", "."))
        else:
            file = Path(path.removeprefix("file://"))
            spec = importlib.util.spec_from_file_location(f"run_reward_{file.stem}", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return getattr(module, name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ValueError(f"reward.custom_reward_function: {path}:{name} cannot be loaded ({error}).") from error


def _default() -> Callable[..., Any]:
    from verl.utils.reward_score import default_compute_score

    return default_compute_score
