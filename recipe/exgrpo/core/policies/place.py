"""Whose places stored trajectories may take in the update (rule `exgrpo.place`): members of this step's groups."""

from collections.abc import Sequence

from recipe.exgrpo.core.policies.policy import Group, Member
from recipe.exgrpo.core.policies.rules import Context


def zero_variance(groups: Sequence[Group], context: Context) -> list[Member]:
    """All members of whole groups whose rewards do not differ: they have no advantage.

    A group that lost a rollout to a failure stays as it is.
    """
    return [
        (i, j)
        for i, group in enumerate(groups)
        if group.size == context.group_size and max(group.rewards) == min(group.rewards)
        for j in range(group.size)
    ]


PLACE = {rule.__name__: rule for rule in (zero_variance,)}
