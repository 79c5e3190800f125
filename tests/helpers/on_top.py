"""A policy with rows on top of the batch (`exgrpo.policy=on_top:OnTop`): stored successes of earlier steps, newest first."""

from dataclasses import dataclass

from recipe.exgrpo.core.policies.policy import Arrangement, Placed
from recipe.exgrpo.core.policies.replay import Replay


@dataclass(frozen=True)
class OnTopOptions:
    """`exgrpo.options`: how many rows come on top in a step, as far as there are any."""

    most: int = 3


class OnTop(Replay):
    """Every success is stored with its advantage, and comes back in whichever steps it is among the newest."""

    Options = OnTopOptions

    def arrange(self, groups, tools, step):
        if not self.active:
            return Arrangement()
        rows = self.store.candidates()
        order = self.rank(rows, None, self.context(step))[: self.options.most]
        taken = [self.take(int(rows.row[i]), step) for i in order]
        return Arrangement(extra=[Placed(one, one.provenance.advantage) for one in taken])
