"""GRPO (arXiv 2402.03300): advantages divided by their group's standard deviation, and otherwise the on-policy baseline."""

from recipe.exgrpo.core.policies.policy import Policy


class GRPO(Policy):
    """`core.advantage.group_advantages` with `normalize_by_std`; in a run, verl's own `grpo` with the same numbers."""

    by_std = True
