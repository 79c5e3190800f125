"""RL-ZVP (arXiv 2509.21880): groups without variance are trained on as well, each token by its entropy. Nothing is replayed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recipe.exgrpo.core.advantage import entropy_advantages
from recipe.exgrpo.core.config import ExGRPOConfig, LossConfig
from recipe.exgrpo.core.policies.policy import Arrangement, Group, Member, Policy, Tools, without_signal


@dataclass(frozen=True)
class RlZvpOptions:
    """`exgrpo.options` of RL-ZVP: alpha, the advantage of a nat of entropy (Table 3: best at 0.1)."""

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ValueError(f"exgrpo.options.alpha must be positive; got {self.alpha}.")


class RlZvp(Policy):
    """Groups that all or none solved have the advantages of Eq. 5, all others those of their rewards."""

    Options = RlZvpOptions
    needs_all_groups = True

    def __init__(self, config: ExGRPOConfig, group_size: int, options: Any = None) -> None:
        super().__init__(config, group_size, options or RlZvpOptions())
        self.shaped: dict[Member, np.ndarray] = {}

    @property
    def loss(self) -> LossConfig:
        return self.config.loss

    def arrange(self, groups: Sequence[Group], tools: Tools, step: int) -> Arrangement:
        members, threshold = without_signal(groups, Arrangement()), self.config.bookkeeping.success_threshold
        self.shaped = {
            (i, j): entropy_advantages(entropies, groups[i].rewards[j] > threshold, self.options.alpha)
            for (i, j), entropies in zip(members, tools.entropies(members) if members else (), strict=True)
        }
        return Arrangement(advantages=dict(self.shaped))

    def metrics(self, step: int) -> dict[str, float]:
        sizes = np.abs(np.concatenate([*self.shaped.values(), np.empty(0)]))
        mean = float(sizes.mean()) if len(sizes) else 0.0
        return super().metrics(step) | {"shaped_rows": float(len(self.shaped)), "shaped_advantage_mean": mean}
