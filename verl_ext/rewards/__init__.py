"""Rule-based rewards for verl: `reward.custom_reward_function.path=pkg://verl_ext.rewards`, `name=compute_score`.

Options go into `reward.custom_reward_function.reward_kwargs` (see RewardOptions). A data source of one's own gets a
rule with `register_rule(data_source, rule)`, in a module named by `rules_module` so that every reward worker
imports it.
"""

from __future__ import annotations

import atexit
import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verl_ext.gold import gold_text
from verl_ext.rewards.grade import THINK_ENDS, Grade, final_answer, last_boxed, shorten, solution_text
from verl_ext.rewards.placeholders import is_placeholder
from verl_ext.rewards.pool import Grader, GradingError, GradingTimeout
from verl_ext.rewards.rules import Rule, find_rule, register_rule

__all__ = [
    "Grade",
    "Grader",
    "GradingError",
    "GradingTimeout",
    "RewardOptions",
    "Rule",
    "compute_score",
    "final_answer",
    "is_placeholder",
    "last_boxed",
    "register_rule",
    "shared_grader",
]

_VERL_ARGUMENTS = frozenset(("reward_router_address", "reward_model_tokenizer"))  # passed along by verl, unused here
_POOL_CREATION = threading.Lock()


@dataclass(frozen=True)
class RewardOptions:
    """Keys of `reward.custom_reward_function.reward_kwargs`.

    Attributes:
        think_format: True or False for every sample; None follows `extra_info.think_format` of each sample, which
            data/prepare_*.py writes from the prompt template, and is False where that is missing.
        think_end: with the think format, "last" grades what follows the last `</think>`, "first" what stands between the
            first and the second, as the authors' released run does.
        workers: grading processes in each reward worker of verl.
        deadline_s: seconds of CPU time after which a grading is killed and counted as `timeout`. A busy machine gives a
            worker its CPU time later, not less of it; pool.WALL_FACTOR times as long is the limit by the clock.
        memory_mb: memory of a grading process, MiB.
        rules_module: module imported before the first grading, for its calls of `register_rule`.
    """

    think_format: bool | None = None
    think_end: str = "last"
    workers: int = 1
    deadline_s: float = 5.0
    memory_mb: int = 1024
    rules_module: str | None = None

    def __post_init__(self) -> None:
        if self.think_format not in (None, True, False):
            raise ValueError(f"reward_kwargs.think_format must be true, false or null, not {self.think_format!r}")
        if self.think_end not in THINK_ENDS:
            raise ValueError(f"reward_kwargs.think_end must be one of {', '.join(THINK_ENDS)}, not {self.think_end!r}")
        if self.workers < 1:
            raise ValueError(f"reward_kwargs.workers must be at least 1, not {self.workers!r}")
        if self.deadline_s <= 0:
            raise ValueError(f"reward_kwargs.deadline_s must be positive, not {self.deadline_s!r}")
        if self.memory_mb < 64:
            raise ValueError(f"reward_kwargs.memory_mb must be at least 64, not {self.memory_mb!r}")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float | str]:
    """Score one response (paper 2, "Reward": 1 if the answer is equivalent to the gold answer, else 0).

    Args:
        data_source: picks the rule, see rules.py.
        solution_str: the response without special tokens. Untrusted model output.
        ground_truth: the gold answer: text, a number, or a list of one of these (gold.py). None, NaN and blank text are
            never paid (`error`); ValueError for anything else.
        extra_info: the sample's `extra_info` column; `think_format` is read, and `truncated`, which manager.py adds for a
            response that was cut off at the length limit.
        kwargs: fields of RewardOptions; anything else raises TypeError.

    Returns:
        The same keys for every sample: `score` and `acc` (the reward), `format_ok` (the think format was kept, or is
        off), `truncated` (cut off at the length limit), `timeout`, `error`, `precheck` (1.0 if that is why the score is
        0), all floats whose means land in verl's metrics, and `extracted` (the graded answer, a string, shortened).
    """
    options = _options(**{key: value for key, value in kwargs.items() if key not in _VERL_ARGUMENTS})
    think_format = options.think_format
    if think_format is None:
        think_format = bool((extra_info or {}).get("think_format", False))
    truncated = bool((extra_info or {}).get("truncated", False))
    text = solution_text(solution_str, think_format, options.think_end)
    rule = find_rule(data_source)
    grade = Grade(0.0) if text is None else rule(text, _gold(ground_truth), _grader(options), truncated=truncated)
    return {
        "score": grade.score,
        "acc": grade.score,
        "format_ok": float(text is not None),
        "truncated": float(truncated),
        "extracted": shorten(grade.extracted),
        "timeout": float(grade.timeout),
        "error": float(grade.error),
        "precheck": float(grade.precheck),
    }


@lru_cache
def shared_grader(workers: int = 1, deadline_s: float = 5.0, memory_mb: int = 1024) -> Grader:
    """The one pool this process has for these settings: started at the first grading, closed when the process exits."""
    grader = Grader(workers, deadline_s, memory_mb)
    atexit.register(grader.close)
    return grader


def _gold(ground_truth: Any) -> str:
    """A gold answer that is missing is the placeholder that its text is: one row of data must not end a run."""
    missing = ground_truth is None or (isinstance(ground_truth, float) and ground_truth != ground_truth)
    return str(ground_truth) if missing or isinstance(ground_truth, str) else gold_text(ground_truth)


@lru_cache
def _options(**kwargs: Any) -> RewardOptions:
    options = RewardOptions(**kwargs)
    if options.rules_module:
        importlib.import_module(options.rules_module)
    return options


def _grader(options: RewardOptions) -> Grader:
    with _POOL_CREATION:  # lru_cache alone lets two threads create two pools
        return shared_grader(options.workers, options.deadline_s, options.memory_mb)
