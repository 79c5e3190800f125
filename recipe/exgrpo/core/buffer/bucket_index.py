"""Which questions are eligible, by latest success count: arrays that allow O(1) moves and uniform draws in O(n)."""

import numpy as np


class BucketIndex:
    """One array of question indices per success count, kept dense by moving the last member into a gap.

    The order inside a bucket decides what a draw returns, so it is part of the buffer's saved state.
    """

    def __init__(self, group_size: int):
        self._members = [np.empty(0, np.int32) for _ in range(group_size + 1)]
        self.sizes = np.zeros(group_size + 1, np.int64)

    def insert(self, bucket: int, question: int) -> int:
        """Append a question to a bucket; returns its place there."""
        members, place = self._members[bucket], int(self.sizes[bucket])
        if place == len(members):
            members = self._members[bucket] = np.concatenate([members, np.empty(max(16, place), np.int32)])
        members[place] = question
        self.sizes[bucket] += 1
        return place

    def remove(self, bucket: int, place: int) -> int:
        """Take out the member at `place`; returns the question that now stands there (itself when it was the last)."""
        last = int(self.sizes[bucket]) - 1
        members = self._members[bucket]
        members[place] = members[last]
        self.sizes[bucket] = last
        return int(members[place])

    def members(self, bucket: int) -> np.ndarray:
        """View of a bucket's question indices, int32, in draw order."""
        return self._members[bucket][: self.sizes[bucket]]

    def fill(self, members: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Set all buckets: `members` of bucket 0, then of 1, ..., `sizes` [K + 1]; returns each member's place."""
        ends = np.cumsum(sizes)
        self._members = [part.astype(np.int32) for part in np.split(members, ends[:-1])]
        self.sizes = sizes.astype(np.int64)
        return np.arange(len(members)) - np.repeat(ends - sizes, sizes)

    def draw(self, bucket: int, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` distinct members, uniform without replacement (numpy uses Floyd's algorithm or a tail shuffle: O(n))."""
        return self.members(bucket)[rng.choice(int(self.sizes[bucket]), n, replace=False)]
