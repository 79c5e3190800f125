"""RLEP (arXiv 2507.07451): verified successes of an earlier run in every group, as further members of it.

The paper rolls out G and adds M: here G + M = K = `rollout.n`, so that all groups have K members, and a question with fewer
than M successes gets more fresh rollouts. Its replayed tokens go through the clipped objective of all others, against the
policy at the start of the step (`loss: {shaping: clip, importance: old}`), as its code recomputes their log-probs.
"""

from dataclasses import dataclass

from recipe.exgrpo.core.policies.luffy import Luffy


@dataclass(frozen=True)
class RlepOptions:
    """`exgrpo.options` of RLEP: M, the successes added to a group (paper: 2, to G = 16)."""

    per_group: int = 2


class Rlep(Luffy):
    Options = RlepOptions

    @property
    def per_group(self) -> int:
        return (self.options or RlepOptions()).per_group
