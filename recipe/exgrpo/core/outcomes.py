"""What a group's rewards say about its question: success counts, reward spread (section 5.3), difficulty bands (App. F.1)."""

from collections.abc import Sequence

import numpy as np


def spread_buckets(groups: Sequence[Sequence[float]], group_size: int, eps: float = 1e-8) -> list[int]:
    """Buckets of a batch under continuous rewards (section 5.3): round(s K) with s the group's spread, min-max normalised.

    The spread is the standard deviation of all K rewards of a group; s = (spread - min) / max(max - min, eps) over the batch.
    Bucket K would mean "all solved, retire", the opposite of what the widest spread says: it is counted as K - 1.
    A batch of equal spreads says nothing about its questions: all get 0, which makes them ineligible.
    """
    if not groups:
        return []
    spreads = np.array([np.std(np.asarray(rewards, dtype=np.float64)) for rewards in groups])
    share = (spreads - spreads.min()) / max(spreads.max() - spreads.min(), eps)
    return np.minimum(np.rint(share * group_size), group_size - 1).astype(int).tolist()


def in_band(successes: int, group_size: int, band: str) -> bool:
    """Whether k of K is `easy` [0.75, 1), `medium` (0.25, 0.75] or `hard` (0, 0.25] (masked GRPO, App. F.1); exact."""
    quarters = 4 * successes
    if band == "easy":
        return quarters >= 3 * group_size and successes < group_size
    if band == "medium":
        return group_size < quarters <= 3 * group_size
    return 0 < quarters <= group_size
