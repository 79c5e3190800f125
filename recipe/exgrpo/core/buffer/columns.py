"""The memory underneath the experience buffer: growing numpy columns, and a segmented store of tokens and log-probs."""

from dataclasses import dataclass

import numpy as np

SEGMENT_TOKENS = 1 << 20  # 8 MiB of ids and float32 log-probs: what the open segment can waste at most


class Columns:
    """Parallel one-dimensional arrays, one attribute per column, growing together by a quarter (amortised O(1) a row).

    Elements at and beyond `size` are unspecified until `append` hands them out.
    """

    def __init__(self, dtypes: dict[str, str], capacity: int = 256):
        assert not {"names", "size", "capacity"} & set(dtypes), "a column would hide an attribute"
        self.names = tuple(dtypes)
        self.size = 0
        self.capacity = capacity
        for name, dtype in dtypes.items():
            setattr(self, name, np.empty(capacity, dtype))

    def append(self) -> int:
        """Position of a new row, whose cells the caller must all set."""
        if self.size == self.capacity:
            self._resize(self.capacity + max(256, self.capacity // 4))
        self.size += 1
        return self.size - 1

    def live(self, name: str) -> np.ndarray:
        """View of a column's rows in use."""
        return getattr(self, name)[: self.size]

    def fill(self, columns: dict[str, np.ndarray], size: int) -> None:
        """Replace all rows by the `size` rows of `columns`, which are copied; a scalar fills its column."""
        self.capacity = max(size, 256)
        for name in self.names:
            column = np.empty(self.capacity, getattr(self, name).dtype)
            column[:size] = columns[name]
            setattr(self, name, column)
        self.size = size

    def keep(self, mask: np.ndarray) -> None:
        """Drop the rows where `mask` (bool [size]) is false, in place; the others move down in order."""
        kept = int(np.count_nonzero(mask))
        for name in self.names:
            column = getattr(self, name)
            column[:kept] = column[: self.size][mask]
        self.size = kept

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(getattr(self, name).nbytes for name in self.names)

    def _resize(self, capacity: int) -> None:
        for name in self.names:
            column = np.empty(capacity, getattr(self, name).dtype)
            column[: self.size] = getattr(self, name)[: self.size]
            setattr(self, name, column)
        self.capacity = capacity


@dataclass(slots=True)
class Segment:
    """A run of tokens. Cells below `used` never change, so a reader may keep `ids` and `log_probs` without a lock."""

    ids: np.ndarray
    log_probs: np.ndarray
    used: int
    live: int


class TokenLog:
    """Append-only store of token ids (int32) and log-probs, in segments that are dropped once nothing in them is live.

    Segments instead of one array that doubles: memory stays within a segment of what is stored, growing never copies,
    and a frozen view of the store costs nothing.
    """

    def __init__(self, log_prob_dtype: str, segment_tokens: int = SEGMENT_TOKENS):
        self.log_prob_dtype = np.dtype(log_prob_dtype)
        self.segment_tokens = segment_tokens
        self.segments: dict[int, Segment] = {}
        self.live_tokens = 0
        self._next = 0
        self._open: int | None = None

    def append(self, ids: np.ndarray, log_probs: np.ndarray) -> tuple[int, int]:
        """Store one trajectory; returns its segment and its offset there."""
        length = len(ids)
        if length > self.segment_tokens:
            return self.adopt(ids.copy(), log_probs.astype(self.log_prob_dtype), length), 0
        segment = self.segments.get(self._open)
        if segment is None or segment.used + length > len(segment.ids):
            segment = self._open_segment()
        start, end = segment.used, segment.used + length
        segment.ids[start:end] = ids
        segment.log_probs[start:end] = log_probs
        segment.used = end
        segment.live += length
        self.live_tokens += length
        return self._open, start

    def adopt(self, ids: np.ndarray, log_probs: np.ndarray, live: int) -> int:
        """Take over whole arrays, without a copy, as a sealed segment of which `live` tokens are in use."""
        self.segments[self._next] = Segment(ids, log_probs, len(ids), live)
        self.live_tokens += live
        self._next += 1
        return self._next - 1

    def view(self, segment: int, offset: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probs (as stored) of one trajectory, without a copy."""
        found = self.segments[segment]
        return found.ids[offset : offset + length], found.log_probs[offset : offset + length]

    def free(self, segment: int, length: int) -> None:
        """Give back one trajectory's tokens; the segment goes with its last one."""
        found = self.segments[segment]
        found.live -= length
        self.live_tokens -= length
        if found.live == 0:
            del self.segments[segment]

    def deadest_segment(self, max_dead_share: float) -> int | None:
        """The sealed segment with the largest dead share, while dead tokens exceed `max_dead_share` of live."""
        sealed = {i: segment for i, segment in self.segments.items() if i != self._open}
        dead = sum(segment.used - segment.live for segment in sealed.values())
        if dead <= max(max_dead_share * self.live_tokens, self.segment_tokens):
            return None
        return min(sealed, key=lambda i: sealed[i].live / sealed[i].used)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token with its log-prob."""
        return 4 + self.log_prob_dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes allocated, the unused end of the open segment included."""
        return sum(s.ids.nbytes + s.log_probs.nbytes for s in self.segments.values())

    def _open_segment(self) -> Segment:
        ids = np.empty(self.segment_tokens, np.int32)
        self._open = self.adopt(ids, np.empty(self.segment_tokens, self.log_prob_dtype), 0)
        segment = self.segments[self._open]
        segment.used = 0
        return segment
