"""Rules of a policy by name or import path: what to admit, how to rank, what may enter, whose places are taken.

    admit(group, context) -> positions of the fresh rollouts of `group` to keep          (`policies.admit`)
    rank(candidates, scores, context) -> int64 [n], all candidates, best first            (`policies.rank`)
    gate(candidates, context) -> bool [n], which may enter the batch now                  (`policies.gate`)
    place(groups, context) -> members whose places stored trajectories may take           (`policies.place`)

`exgrpo.rank=lowest_entropy` is a name of that module, `exgrpo.rank=my_folder.my_module:my_rule` a function of yours.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.exgrpo.core.config import ExGRPOConfig, nearest


@dataclass(frozen=True)
class Context:
    """What a rule may know besides its candidates; `rng` is the policy's one saved generator."""

    config: ExGRPOConfig
    group_size: int
    step: int
    rng: np.random.Generator


def find(key: str, name: str, known: Mapping[str, Any]) -> Any:
    """`known[name]`, or what the import path `package.module:attribute` names; ValueError naming `key` otherwise."""
    if ":" not in name:
        if name not in known:
            raise ValueError(f"{key}={name} is unknown; {nearest(name, known)} (or package.module:name of your own).")
        return known[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{key}={name} cannot be imported: {error}.") from error


def chosen(key: str, name: str | None, own: str, known: Mapping[str, Callable]) -> Callable:
    """The rule configured as `exgrpo.<key>`, `own` where that is null."""
    rule = find(f"exgrpo.{key}", own if name is None else name, known)
    if not callable(rule):
        raise ValueError(f"exgrpo.{key}={name} is not a function.")
    return rule


def scored(rule: Callable) -> Callable:
    """Mark a rank rule that needs this step's scores: one forward pass over its candidates."""
    rule.needs_scores = True
    return rule


def needs_scores(rule: Callable) -> bool:
    """Whether a rank rule was marked by `scored`."""
    return getattr(rule, "needs_scores", False)
