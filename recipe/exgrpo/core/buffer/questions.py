"""The questions of the experience buffer: names and indices, latest success counts, the retired set, buckets, cooldowns."""

import heapq
from collections.abc import Iterable

import numpy as np

from recipe.exgrpo.core.buffer.bucket_index import BucketIndex
from recipe.exgrpo.core.buffer.columns import Columns
from recipe.exgrpo.core.buffer.state import NONE, decode_names

DTYPES = {"count": "i2", "place": "i4", "cool_until": "i4"}


class QuestionIndex:
    """Questions by index, and which of them are eligible for replay, by latest success count of `group_size` = K rollouts.

    Whether a question has trajectories is not known here: the buffer says so in `enter_bucket`.
    """

    def __init__(self, group_size: int):
        self.group_size = group_size
        self.index: dict[str, int] = {}
        self.names: list[str] = []  # "" marks an index that a discarded question gave back
        self.retired: dict[int, None] = {}  # ordered by time of retirement
        self.columns = Columns(DTYPES)
        self.buckets = BucketIndex(group_size)
        self._free: list[int] = []
        self._cooling: list[tuple[int, int]] = []  # heap of (first eligible step, question)

    def open(self, question: str) -> int:
        """Index of a question, which is new if it is not known: without count, place or cooldown.

        Raises ValueError for an id that is empty or no string.
        """
        q = self.index.get(question)
        if q is not None:
            return q
        if not isinstance(question, str) or not question:
            raise ValueError(f"a question id must be a string that is not empty; got {question!r}.")
        if self._free:
            q = self._free.pop()
            self.names[q] = question
        else:
            q = self.columns.append()
            self.names.append(question)
        for name in DTYPES:
            getattr(self.columns, name)[q] = NONE
        self.index[question] = q
        return q

    def count(self, q: int) -> int:
        """Latest success count; NONE where there is none."""
        return int(self.columns.count[q])

    def forget(self, q: int) -> None:
        """Take a question out of its bucket, without count and cooldown."""
        self.leave_bucket(q)
        self.columns.count[q] = self.columns.cool_until[q] = NONE

    def discard(self, q: int) -> None:
        """Give a question's index back."""
        self.forget(q)
        self.retired.pop(q, None)
        del self.index[self.names[q]]
        self.names[q] = ""
        self._free.append(q)

    # ---- buckets and cooldowns

    def leave_bucket(self, q: int) -> None:
        """Make a question ineligible, if it is not already."""
        place = int(self.columns.place[q])
        if place != NONE:
            moved = self.buckets.remove(self.count(q), place)
            self.columns.place[moved] = place
            self.columns.place[q] = NONE

    def enter_bucket(self, q: int, stored: int) -> None:
        """Put a question that is in no bucket into its own, if it is eligible; it has `stored` trajectories."""
        columns = self.columns
        if columns.count[q] > 0 and stored and columns.cool_until[q] == NONE:
            columns.place[q] = self.buckets.insert(self.count(q), q)

    def cool(self, questions: Iterable[int], first: int) -> None:
        """Make questions ineligible until `first`, the first step that may replay them again."""
        for q in dict.fromkeys(questions):
            self.leave_bucket(q)
            self.columns.cool_until[q] = first
            heapq.heappush(self._cooling, (first, q))

    def end_cooldowns(self, step: int) -> list[int]:
        """The questions whose cooldown ends with `step`, which the caller puts into their buckets, in this order."""
        ended = []
        while self._cooling and self._cooling[0][0] <= step:
            first, q = heapq.heappop(self._cooling)
            if self.columns.cool_until[q] == first:  # else replayed again, retired or discarded meanwhile
                self.columns.cool_until[q] = NONE
                ended.append(q)
        return ended

    def cooling(self) -> int:
        """How many questions are cooling down."""
        return int(np.count_nonzero(self.columns.live("cool_until") != NONE))

    # ---- state

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of everything but the names (see `state`)."""
        return {
            "question_count": self.columns.live("count").copy(),
            "question_cool_until": self.columns.live("cool_until").copy(),
            "question_free": np.array(self._free, np.int32),
            "retired": np.fromiter(self.retired, np.int32, len(self.retired)),
            "bucket_members": np.concatenate([self.buckets.members(k) for k in range(self.group_size + 1)]),
            "bucket_sizes": self.buckets.sizes.copy(),
        }

    def fill(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over the questions of a checked state."""
        self.names = decode_names(arrays)
        self.index = {name: q for q, name in enumerate(self.names) if name}
        self._free = arrays["question_free"].tolist()
        self.retired = dict.fromkeys(arrays["retired"].tolist())
        count, cool_until, members = (
            arrays[name] for name in ("question_count", "question_cool_until", "bucket_members")
        )
        self.columns.fill({"count": count, "cool_until": cool_until, "place": NONE}, len(self.names))
        cooling = np.flatnonzero(cool_until != NONE)
        self._cooling = list(zip(cool_until[cooling].tolist(), cooling.tolist(), strict=True))
        heapq.heapify(self._cooling)
        self.columns.place[members] = self.buckets.fill(members, arrays["bucket_sizes"])

    def change_group_size(self, group_size: int) -> list[int]:
        """Scale success counts to a new K, those solved in part to stay within 1..K-1, and empty the buckets.

        Returns the questions that were in them, in bucket order, for the caller to put into their new ones.
        """
        old, count = self.group_size, self.columns.live("count")
        order = [q for k in range(old + 1) for q in self.buckets.members(k).tolist()]
        scaled = np.clip(np.rint(count * (group_size / old)), 1, group_size - 1)
        count[:] = np.where(count > 0, scaled, count)
        self.group_size, self.buckets = group_size, BucketIndex(group_size)
        return order
